"""Mixtures of labeled with pseudo-labeled signals on top of FixMatch."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.kit import datasets
from experiments.kit.datasets import Split
from experiments.kit.sweep import grid
from experiments.kit.train import Trained, accuracy, sgd_cosine, train
from experiments.mixing_adaptation.decoupled_mixup.policies import network
from jaxlab import augment, experiment, losses, training, weights

SUPERVISED, FIXMATCH = "labels alone", "FixMatch"
MIXUP, DECOUPLED = f"{FIXMATCH} + mixup's loss", f"{FIXMATCH} + decoupled"


def semi_supervised(config, context: experiment.Context) -> dict[str, dict]:
  """Accuracy per seed of labels alone, of FixMatch, and with either loss of mixtures on top."""
  dataset = datasets.describe("mnist1d")
  module = network(config, dataset)
  sizes = config.num_labeled, config.num_unlabeled, config.num_test[0]
  splits = datasets.stack_seeds(
    lambda seed: dataset.splits(*sizes, seed=seed), context.seed_numbers
  )

  def evaluate(key, splits, setting, unlabeled=True):
    labeled, pool, test = splits
    init_key, train_key = jax.random.split(key)
    variables = dict(module.init(init_key, labeled.inputs[:2]))
    state = {"step": jnp.int32(0), "average": variables, "batch_stats": variables["batch_stats"]}
    eta = setting.get("eta")
    trained = train(
      train_key,
      module,
      semi_supervised_loss(config, module, labeled, unlabeled=unlabeled, eta=eta),
      sgd_cosine(config.semi_learning_rate, config.semi_steps, weight_decay=config.weight_decay),
      (pool.inputs,),
      num_steps=config.semi_steps,
      batch_size=config.semi_batch,
      start=Trained(variables["params"], state),
    )
    right = accuracy(module, trained.model_state["average"], test)
    return {"accuracy": right, "bad_step": trained.bad_step}

  def stage(name, settings, evaluate=evaluate):
    scores = grid(context, f"semi-supervised/{name}", evaluate, splits, settings)
    return scores["accuracy"].T

  (supervised,) = stage("labels", [{}], functools.partial(evaluate, unlabeled=False))
  (alone,) = stage("FixMatch", [{}])
  plain, decoupled = stage("mixtures", [{"eta": 0.0}, {"eta": config.semi_eta}])
  scores = {SUPERVISED: supervised, FIXMATCH: alone, MIXUP: plain, DECOUPLED: decoupled}
  return {name: {"accuracy": values} for name, values in scores.items()}


def semi_supervised_loss(
  config, module: nn.Module, labeled: Split, *, unlabeled: bool, eta: chex.Numeric | None
):
  """FixMatch's loss, and those of labeled with labeled and with unlabeled examples mixed.

  Without `unlabeled` it is that of the labeled examples alone; `eta` None mixes nothing. The model
  state holds the running statistics, the average of the network and the step.
  """
  inputs, labels = jnp.asarray(labeled.inputs), jnp.asarray(labeled.labels)
  num = config.semi_batch

  def loss(params, model_state, batch, key):
    rows_key, weak_key, teacher_key, strong_key, pairs_key, mixed_key = jax.random.split(key, 6)
    rows = jax.random.randint(rows_key, (num,), 0, inputs.shape[0])
    known, target = shifted(weak_key, inputs[rows]), labels[rows]
    average = jax.lax.stop_gradient(model_state["average"])
    views = [known]
    if unlabeled:
      weak_logits = module.apply(average, shifted(teacher_key, batch[0])).logits
      strong = strong_view(strong_key, batch[0])
      views.append(strong)
    if eta is not None:
      among = augment.mixup(pairs_key, known, target)
      ratio = augment.draw_mix(mixed_key, batch_size=num, majority=True).ratio
      # Row i of the labeled examples meets row i of the unlabeled ones.
      partner = jnp.concatenate([jnp.arange(num, 2 * num), jnp.arange(num)])
      across = augment.interpolate_pairs(
        jnp.concatenate([known, strong]), partner, jnp.concatenate([ratio, ratio])
      )[:num]
      views += [among.inputs, across]
    outputs, updated = module.apply(
      {"params": params, "batch_stats": model_state["batch_stats"]},
      jnp.concatenate(views),
      train=True,
      mutable=["batch_stats"],
    )
    logits = outputs.logits.reshape(len(views), num, -1)
    values = optax.softmax_cross_entropy_with_integer_labels(logits[0], target)
    step = model_state["step"]
    if unlabeled:
      values += losses.fixmatch_loss(logits[1], weak_logits)
    if eta is not None:
      values += losses.decoupled_mixup_loss(logits[2], target, among.labels_b, among.ratio, eta=eta)
      guess, confidence = jnp.argmax(weak_logits, -1), jnp.max(jax.nn.softmax(weak_logits), -1)
      counts = losses.pseudo_label_mix_weight(confidence, ratio)
      ramp = (1 - jnp.cos(jnp.pi * step / config.semi_steps)) / 2
      # Only the known label has a term of its own: the other one is a guess.
      across_values = losses.decoupled_mixup_loss(
        logits[3], target, guess, ratio, eta=eta, eta_mode="first"
      )
      values += ramp * counts * across_values
    # Early on the average forgets faster, or it would hold on to the random start.
    decay = jnp.minimum((1 + step) / (10 + step), 0.999)
    average = weights.ema_update(average, {"params": params, **updated}, decay=decay)
    new_state = {"step": step + 1, "average": average, **updated}
    return training.LossOutput(values, model_state=jax.lax.stop_gradient(new_state))

  return loss


def shifted(key, signals):
  """The weak view: moved by up to two samples."""
  shifts = jax.random.randint(key, (signals.shape[0],), -2, 3)
  return jax.vmap(lambda signal, shift: jnp.roll(signal, shift, axis=0))(signals, shifts)


def strong_view(key, signals):
  """Gain, shift, offset, noise and blur, then up to a quarter of the signal blanked."""
  jitter_key, center_key, ratio_key = jax.random.split(key, 3)
  num, length, _ = signals.shape
  centers = jax.random.randint(center_key, (num,), 0, length)
  ratio = jax.random.uniform(ratio_key, (num,), minval=0.75)
  blanked = augment.segment_masks(centers, ratio, length=length)
  return augment.jitter_signals(jitter_key, signals) * (1 - blanked[..., None])
