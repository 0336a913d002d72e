"""Fine-tuning with replaced tokens and noisy embeddings, for one seed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.alignment.masked_thought import habits
from experiments.kit.chains import greedy_accuracy
from experiments.kit.language_models import decoder, fit_decoder, search_decoder
from experiments.kit.train import Trained
from jaxlab import augment, losses, models, training

RESPONSE, OPERATORS, EVERYWHERE = range(3)  # Which tokens may be replaced.
# What a method does to what the model reads; the setting of plain fine-tuning.
PLAIN = {
  "rate": 0.0,  # The last rate of replaced tokens.
  "random": 1.0,  # Share of replaced tokens that become random; the others become the mask token.
  "places": RESPONSE,
  "dropped": 0.0,  # The last rate of tokens whose embedding becomes 0.
  "noise": 0.0,  # Scale of the noise of embeddings.
}


def network(config, *, dropout: float = 0.0, num_added: int = 1) -> models.DecoderLM:
  """The decoder, with a mask token behind the vocabulary of chains."""
  chains = habits.chains_of(config)
  hidden_size, num_layers = config.decoder
  sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "num_heads": config.num_heads}
  length = chains.prompt_length + chains.response_length
  return decoder(chains.vocab_size + num_added, length, dropout_rate=dropout, **sizes)


def pretrain(config, key) -> dict[str, Any]:
  """Trains a base model; gives its parameters, and the share of dictated results it has right."""
  model, chains = network(config, num_added=0), habits.chains_of(config)
  train_key, test_key = jax.random.split(key)
  draw = functools.partial(habits.base_texts, config)
  sizes = {"num_steps": config.base_steps, "batch_size": config.base_texts}
  trained = fit_decoder(train_key, model, draw, **sizes)
  texts = habits.dictated_texts(chains, test_key, config.num_validation)
  right = habits.next_token_accuracy(model, trained.params, texts, texts.loss_mask)
  return {"params": models.add_tokens(trained.params, model.config, 1)[0], "results right": right}


def objective(config, model: models.DecoderLM, setting):
  """Cross-entropy of the original solutions after perturbed ones; batches are (texts, progress).

  As many dictated texts as `config.num_dictated` are learned beside them, unperturbed: what the
  base model knows of arithmetic is not forgotten.

  Args:
    config: of the experiment.
    model: the decoder.
    setting: as `PLAIN`, numbers that may be traced.

  Returns:
    The engine's loss. `progress` is the share of the last rates that is reached, `[b]`.
  """
  chains = habits.chains_of(config)
  is_operator = habits.step_parts(chains) == habits.OPERATOR

  def loss(params, model_state, batch, key):
    del model_state
    texts, progress = batch
    dropout_key, mask_key, drop_key, noise_key, extra_key = jax.random.split(key, 5)
    response = texts.loss_mask > 0
    everywhere = jnp.ones_like(response)
    places = jnp.stack([response, response & is_operator[None], everywhere])[setting["places"]]
    read = augment.mask_reasoning_tokens(
      mask_key,
      texts.tokens,
      places,
      rate=progress[0] * setting["rate"],
      mask_token_id=chains.vocab_size,
      random_fraction=setting["random"],
      vocab_size=chains.vocab_size,
    )
    dropped = response & jax.random.bernoulli(
      drop_key, progress[0] * setting["dropped"], response.shape
    )
    dictated = habits.dictated_texts(chains, extra_key, config.num_dictated)
    together = lambda x, y: jnp.concatenate([x, jnp.asarray(y, x.dtype)])  # noqa: E731
    tokens, mask = (together(x, y) for x, y in zip(texts[:2], dictated[:2]))
    dropped = together(dropped, jnp.zeros_like(dictated.loss_mask))
    noise_scale = together(jnp.ones(len(response)), jnp.zeros(config.num_dictated))
    lengths = jnp.full(len(tokens), tokens.shape[1])

    def perturb(embed, args, kwargs, context):
      embedded = embed(*args, **kwargs)
      if (context.module.name, context.method_name) != ("embed", "__call__"):
        return embedded
      noise = augment.embedding_noise(noise_key, embedded, lengths, alpha=setting["noise"])
      return jnp.where(dropped[..., None], 0.0, embedded) + noise_scale[:, None, None] * noise

    options = {"deterministic": False, "rngs": {"dropout": dropout_key}}
    with nn.intercept_methods(perturb):
      read = together(read.tokens, dictated.tokens)
      logits = model.apply({"params": params}, read, **options).logits
    return training.LossOutput(-losses.causal_token_log_probs(logits, tokens), mask)

  return loss


def fine_tune(config, key, base, setting, *, dropout: float) -> dict[str, Any]:
  """Fine-tunes the base model, and tests the rate and the epoch that validation prefers.

  Args:
    config: of the experiment.
    key: of the problems and of training.
    base: parameters of the base model.
    setting: traced: as `PLAIN`, `weight_decay`, and `habit`, the share of training problems'
      operands that follow it.
    dropout: its rate.

  Returns:
    Name -> measurement, on problems without habit unless training is said.
  """
  chains = habits.chains_of(config)
  model = network(config, dropout=dropout)
  keys = jax.random.split(key, 6)
  favorites = jax.random.randint(keys[0], (habits.NUM_OPERATORS,), 0, config.modulus)
  draw = functools.partial(habits.draw_texts, chains=chains, favorites=favorites)
  rows = draw(keys[1], num=config.num_train, habit=setting["habit"])
  validation, test = (
    draw(k, num=num, habit=0.0)
    for k, num in zip(keys[2:], (config.num_validation, config.num_test))
  )
  num_steps = config.num_train // config.batch_size * config.num_epochs
  progress = augment.mask_rate_schedule(
    jnp.arange(num_steps), total_steps=num_steps, max_rate=1.0, warmup_fraction=config.warmup
  )
  params, chosen = search_decoder(
    keys[4],
    model,
    rows,
    learning_rates=config.learning_rates,
    num_steps=num_steps,
    num_evaluations=config.num_evaluations,
    validate=lambda p: greedy_accuracy(model, p, chains, validation.tokens, validation.answers),
    batch_size=config.batch_size,
    weight_decay=setting["weight_decay"],
    loss_fn=objective(config, model, setting),
    start=Trained(base, {}),
    schedule=progress,
  )
  chosen["epoch"] = chosen.pop("update") * config.num_epochs / num_steps
  failed, misread = habits.greedy_failures(model, params, chains, test)
  new = habits.is_new(test, rows)
  contrary = habits.contrary_operands(chains, test, favorites)
  shares = {
    "validation/accuracy": chosen.pop("validation"),
    "accuracy": 1 - jnp.sum(new & failed) / jnp.sum(new),
    "failures that begin with an operand": jnp.sum(new & misread) / jnp.sum(new & failed),
    "training tokens right": habits.next_token_accuracy(model, params, rows, rows.loss_mask),
    "contrary operands right": habits.next_token_accuracy(model, params, test, contrary),
  }
  by_distance = functools.partial(habits.sensitivity, keys[5], model, params, chains, test)
  return {
    **{name: 100 * value for name, value in shares.items()},
    **{f"chosen/{name}": value for name, value in chosen.items()},
    "far sensitivity": by_distance(num_bins=2)[1],
    "sensitivity": by_distance(num_bins=config.num_bins),
  }
