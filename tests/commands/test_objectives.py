import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.augment import mask_reasoning_tokens
from jaxlab.commands import objectives
from jaxlab.losses import kto_loss
from jaxlab.models import DecoderLM, decoder_config
from jaxlab.training.mesh import make_mesh
from jaxlab.training.state import init_state
from jaxlab.training.update import build_evaluate

SIZES = {"vocab_size": 11, "hidden_size": 8, "num_layers": 1, "num_heads": 2}
BETA = 0.3


def model_and_params(tie_embeddings, dtype=jnp.float32):
  model = DecoderLM(decoder_config(**SIZES, tie_embeddings=tie_embeddings), dtype=dtype)
  params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  return model, jax.tree.map(lambda x: 2 * x, params)


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  lengths, starts = rng.integers(4, 7, (4, 2)), rng.integers(1, 3, (4, 2))
  columns = np.arange(6)
  return {
    "tokens": rng.integers(0, 11, (4, 2, 6)).astype(np.int32),
    "mask": (columns >= starts[..., None]) & (columns < lengths[..., None]),
    "weight": np.array([1, 1, 1, 0], np.float32),
    "label": np.array([True, False, True, False]),
    "reference": rng.normal(-9, 2, (4, 2)).astype(np.float32),
  }


def slow_scores(model, params, tokens):
  rows = tokens.reshape(-1, tokens.shape[-1])
  logits = np.asarray(jax.jit(model.apply)({"params": params}, rows).logits, np.float64)
  log_probs = np.zeros(rows.shape)
  for i, t in np.ndindex(rows.shape):
    if t > 0:
      scores = logits[i, t - 1]
      log_probs[i, t] = scores[rows[i, t]] - np.log(np.exp(scores).sum())
  return log_probs.reshape(tokens.shape)


def expected_loss(objective, scores, batch):
  """Value of each row (of each token for sft) by the equations."""
  mask, log_sigmoid = batch["mask"], lambda x: -np.log1p(np.exp(-x))
  sums = (scores * mask).sum(-1)
  means = sums / mask.sum(-1)
  ratios = sums - batch["reference"]
  if objective == "sft":
    return -scores[:, 0]
  if objective == "pass_at_n":
    p = np.exp(sums[:, 0])
    weight = 4 * p * (1 - p) ** 3 / (1 - (1 - p) ** 4)
    return -weight * means[:, 0]
  if objective in ("dpo", "rpo"):
    weight = 0.2 * BETA if objective == "rpo" else 0.0
    return -log_sigmoid(BETA * (ratios[:, 0] - ratios[:, 1])) - weight * sums[:, 0]
  if objective == "ipo":
    return (ratios[:, 0] - ratios[:, 1] - 1 / (2 * BETA)) ** 2
  if objective == "simpo":
    return -log_sigmoid(BETA * (means[:, 0] - means[:, 1]) - 0.5)
  if objective == "orpo":
    odds = means - np.log(1 - np.exp(means))
    return -means[:, 0] - BETA * log_sigmoid(odds[:, 0] - odds[:, 1])
  gain = BETA * (ratios[:, 0] - max(ratios[:, 1].mean(), 0))
  return 1 / (1 + np.exp(np.where(batch["label"], gain, -gain)))


@pytest.fixture(scope="module")
def untied(batch):
  model, params = model_and_params(False)
  return model, params, slow_scores(model, params, batch["tokens"])


@pytest.mark.parametrize(
  "objective", ["sft", "dpo", "rpo", "ipo", "kto", "simpo", "orpo", "pass_at_n"]
)
def test_objectives_follow_their_equations_on_any_number_of_devices(untied, batch, objective):
  model, params, scores = untied
  weights = batch["weight"]
  if objective == "sft":
    weights = weights[:, None] * batch["mask"][:, 0]
  expected = (expected_loss(objective, scores, batch) * weights).sum() / weights.sum()
  loss_fn = objectives.build_loss(
    model,
    lambda trained, frozen: trained | frozen,
    objective=objective,
    beta=BETA,
    margin=0.5,
    num_samples=4,
    sft_weight=0.2,
  )
  trained = {name: params[name] for name in ("embed", "layers")}
  frozen = {name: params[name] for name in ("final_norm", "lm_head")}
  state = init_state(jax.random.key(0), trained, optax.sgd(1.0))._replace(model_state=frozen)
  for devices in (1, 2) if objective in ("sft", "kto") else (2,):
    mesh = make_mesh({"data": devices})
    actual = build_evaluate(loss_fn, mesh=mesh)(state, [batch])
    np.testing.assert_allclose(actual["loss"], expected, rtol=2e-5)
  if objective in ("dpo", "rpo", "ipo"):
    sums = (scores * batch["mask"]).sum(-1) - batch["reference"]
    margins = BETA * (sums[:, 0] - sums[:, 1])[:3]
    np.testing.assert_allclose(actual["reward_margin"], margins.mean(), rtol=1e-4)
    np.testing.assert_allclose(actual["reward_accuracy"], (margins > 0).mean(), rtol=1e-6)


def test_masked_thought_reads_other_tokens_and_predicts_the_same(untied, batch):
  model, params, scores = untied
  options = {"objective": "masked_thought", "mask_rate": 0.5, "num_steps": 9}
  loss_fn = objectives.build_loss(model, lambda trained, _: trained, **options)
  tokens, mask = batch["tokens"][:, 0], batch["mask"][:, 0]

  @jax.jit
  def run(key, step):
    rate = 0.5 * jnp.minimum(step / 7.0, 1.0)  # Up to step 7 = 2/3 of 9, and 1.
    more = {"rate": rate, "mask_token_id": 0, "random_fraction": 1.0, "vocab_size": 11}
    read = mask_reasoning_tokens(key, tokens, mask, **more).tokens
    logits = model.apply({"params": params}, read).logits
    masked = loss_fn(params, {}, batch, key, step=step).values
    return masked, loss_fn(params, {}, batch, key).values, jax.nn.log_softmax(logits), read

  for step in (0, 2, 8):
    masked, plain, log_probs, read = map(np.asarray, run(jax.random.key(step), jnp.int32(step)))
    np.testing.assert_allclose(plain, -scores[:, 0], rtol=1e-5, atol=1e-5)
    assert (read != tokens).any() == (step > 0)
    for i, t in zip(*np.nonzero(mask)):
      expected = -log_probs[i, t - 1, tokens[i, t]]
      np.testing.assert_allclose(masked[i, t], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tie_embeddings, dtype", [(False, jnp.float32), (True, jnp.bfloat16)])
def test_chunks_change_neither_scores_nor_gradients(batch, tie_embeddings, dtype):
  model, params = model_and_params(tie_embeddings, dtype)
  tokens = batch["tokens"]

  @jax.jit
  def both(params):
    def total(params, chunk_size):
      scores = objectives.score_tokens(model, params, tokens, chunk_size=chunk_size)
      return jnp.sum(jnp.where(batch["mask"], scores, 0) ** 2), scores

    return [jax.value_and_grad(total, has_aux=True)(params, chunk) for chunk in (0, 4)]

  ((_, whole), gradient), ((_, chunked), chunked_gradient) = both(params)
  assert whole.shape == tokens.shape and whole.dtype == chunked.dtype == jnp.float32
  np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-5)
  # Half precision rounds the gradient of the hidden states in another order.
  tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
  for actual, expected in zip(jax.tree.leaves(chunked_gradient), jax.tree.leaves(gradient)):
    np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max())
  if dtype == jnp.float32:
    np.testing.assert_allclose(whole, slow_scores(model, params, tokens), rtol=1e-5, atol=1e-5)


def test_with_chunks_no_array_holds_all_logits(untied, batch):
  model, params, _ = untied
  tokens = jnp.zeros((3, 12), jnp.int32)

  def total(params, chunk_size):
    return objectives.score_tokens(model, params, tokens, chunk_size=chunk_size).sum()

  for chunk_size, holds in ((0, True), (4, False)):
    program = jax.jit(jax.grad(total), static_argnums=1).lower(params, chunk_size).compile()
    shapes = ("f32[3,12,11]", "f32[3,11,11]", "f32[36,11]", "f32[33,11]")
    assert any(shape in program.as_text() for shape in shapes) == holds


def test_kto_takes_no_gradient_through_the_mismatched_responses(untied, batch):
  model, params, scores = untied
  # Far above the reference, so that the estimate is positive and counts.
  reference = batch["reference"] - np.array([0, 30], np.float32)
  loss_fn = objectives.build_loss(model, lambda trained, _: trained, objective="kto", beta=BETA)
  rows = batch | {"reference": reference}
  over_data = {"in_axes": None, "out_axes": None, "axis_name": "data", "axis_size": 1}
  kl = float(((scores * batch["mask"]).sum(-1) - reference)[:, 1].mean())
  assert kl > 0

  def total(params):
    return jax.vmap(lambda rows: loss_fn(params, {}, rows, None).values, **over_data)(rows).sum()

  def total_of_constant(params):
    actual = objectives.score_tokens(model, params, batch["tokens"][:, 0])
    policy = jnp.where(batch["mask"][:, 0], actual, 0).sum(-1)
    return kto_loss(policy, reference[:, 0], batch["label"], kl, beta=BETA).sum()

  actual, expected = jax.jit(
    lambda params: (jax.grad(total)(params), jax.grad(total_of_constant)(params))
  )(params)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max())
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 1e-3


@pytest.mark.parametrize(
  "objective, adapters, rate",
  [("sft", True, 1e-4), ("sft", False, 1e-5), ("dpo", True, 1e-5), ("kto", False, 1e-6)],
)
def test_default_learning_rates(objective, adapters, rate):
  found = objectives.default_learning_rate(objective, adapters=adapters)
  np.testing.assert_allclose(found, rate)
