"""Values and gradients beside TRL's trainers, whose losses run here without a trainer.

A stand-in model hands TRL the log-probabilities of tokens, and stand-in trainers hold the few
settings that its methods read. Where a formula of TRL cannot be called by itself, advantages for
example, the same formula in PyTorch takes its place.
"""

import collections
import types

import jax
import numpy as np
import pytest

from jaxlab import losses

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from trl.experimental.cpo import CPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOTrainer  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402
from trl.trainer.kto_trainer import KTOTrainer  # noqa: E402
from trl.trainer.reward_trainer import RewardTrainer  # noqa: E402
from trl.trainer.rloo_trainer import RLOOTrainer  # noqa: E402

from benchmarks.peers import preference as formulas  # noqa: E402
from jaxlab.losses import coverage, policy_gradient, sequence  # noqa: E402

B, T, V = 5, 7, 11
RNG = np.random.default_rng(0)
# Policy and reference; chosen and rejected.
TOKENS = (-3 * RNG.random((2, 2, B, T))).astype(np.float32)
MASKS = np.arange(T) < RNG.integers(1, T + 1, (2, B, 1))
ADVANTAGES = RNG.normal(size=B).astype(np.float32)
REWARDS = RNG.normal(size=(B, 4)).astype(np.float32)


def same(values):
  return values


ACCELERATOR = types.SimpleNamespace(
  device=torch.device("cpu"),
  gather=same,
  gather_for_metrics=same,
  reduce=lambda values, reduction: values,
  num_processes=1,
)


def trainer(**settings):
  """What TRL's loss methods read of a trainer."""
  defaults = {
    "model": types.SimpleNamespace(training=False),
    "accelerator": ACCELERATOR,
    "aux_loss_enabled": False,
    "_metrics": collections.defaultdict(lambda: collections.defaultdict(list)),
    "_total_train_tokens": 0,
  }
  return types.SimpleNamespace(**defaults | settings)


def outputs(tokens, mask):
  """What TRL's fused head returns; it leaves masked tokens at 0."""
  zeros = torch.zeros_like(tokens)
  return types.SimpleNamespace(
    log_probs=torch.where(mask, tokens, 0.0), entropy=zeros, mean_logits=zeros, is_top1=zeros > 1
  )


def with_prompt(mask):
  """TRL's masks have a place for the first token too, which nothing predicts."""
  return torch.nn.functional.pad(torch.tensor(mask), (1, 0)).long()


def assert_same(ours, arguments, theirs):
  """Compares the mean of a loss and its gradients with a TRL scalar of the same arrays."""
  tensors = [torch.tensor(x, requires_grad=True) for x in arguments]
  value = theirs(*tensors)
  value.backward()
  found, slopes = jax.jit(
    jax.value_and_grad(lambda *xs: ours(*xs).mean(), argnums=tuple(range(len(arguments))))
  )(*arguments)
  np.testing.assert_allclose(found, value.item(), rtol=1e-5, atol=1e-6)
  for slope, tensor in zip(slopes, tensors):
    np.testing.assert_allclose(slope, tensor.grad.numpy(), rtol=1e-4, atol=1e-6)


def log_probs(chosen, rejected):
  """Sequences of the policy, which is given, and of the reference."""
  policy = (sequence.sequence_log_prob(x, m) for x, m in zip((chosen, rejected), MASKS))
  reference = (sequence.sequence_log_prob(x, m) for x, m in zip(TOKENS[1], MASKS))
  return *policy, *reference


LENGTHS = MASKS.sum(-1)


@pytest.mark.parametrize(
  ("loss_type", "smoothing", "ours"),
  [
    ("sigmoid", 0.0, lambda *x: losses.dpo_loss(*x, beta=0.2)),
    ("hinge", 0.0, lambda *x: losses.hinge_loss(*x, beta=0.2)),
    ("robust", 0.15, lambda *x: losses.robust_dpo_loss(*x, beta=0.2, label_smoothing=0.15)),
    (
      "ipo",
      0.0,
      lambda *x: losses.ipo_loss(
        *x, beta=0.2, chosen_lengths=LENGTHS[0], rejected_lengths=LENGTHS[1]
      ),
    ),
  ],
)
def test_losses_with_a_reference(loss_type, smoothing, ours):
  mask = torch.tensor(MASKS.reshape(2 * B, T))
  reference = torch.tensor(np.where(MASKS, TOKENS[1], 0).sum(-1))
  fake = trainer(
    loss_types=[loss_type],
    loss_weights=[1.0],
    label_smoothing=smoothing,
    beta=0.2,
    ld_alpha=None,
    precompute_ref_logps=True,
    f_divergence_type="reverse_kl",
    use_weighting=False,
  )
  ids = torch.zeros((2 * B, T + 1), dtype=torch.long)
  inputs = {
    "completion_mask": with_prompt(MASKS.reshape(2 * B, T)),
    "input_ids": ids,
    "attention_mask": ids + 1,
    "ref_chosen_logps": reference[0],
    "ref_rejected_logps": reference[1],
  }

  def theirs(chosen, rejected):
    model = lambda **inputs: outputs(torch.cat([chosen, rejected]), mask)  # noqa: E731
    return DPOTrainer._compute_loss(fake, model, dict(inputs), return_outputs=False)

  assert_same(lambda c, r: ours(*log_probs(c, r)), TOKENS[0], theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_simpo(smoothing):
  means = [
    sequence.sequence_log_prob(x, m, normalize_length=True) for x, m in zip(TOKENS[0], MASKS)
  ]
  fake = trainer(alpha=0.0, loss_type="simpo", simpo_gamma=0.7, beta=1.5, label_smoothing=smoothing)
  assert_same(
    lambda c, r: losses.simpo_loss(
      c * LENGTHS[0], r * LENGTHS[1], *LENGTHS, beta=1.5, margin=0.7, label_smoothing=smoothing
    ),
    [np.asarray(x) for x in means],
    lambda c, r: CPOTrainer.cpo_loss(fake, c, r)[0].mean(),
  )


def test_smoothed_dpo():
  """TRL's smoothed sigmoid loss is now its reference-free one."""
  fake = trainer(alpha=0.0, loss_type="sigmoid", beta=0.3, label_smoothing=0.2)
  totals = [np.asarray(sequence.sequence_log_prob(x, m)) for x, m in zip(TOKENS[0], MASKS)]
  zeros = np.zeros((2, B), np.float32)
  assert_same(
    lambda c, r: losses.dpo_loss(c, r, *zeros, beta=0.3, label_smoothing=0.2, reference_free=True),
    totals,
    lambda c, r: CPOTrainer.cpo_loss(fake, c, r)[0].mean(),
  )


def test_orpo():
  means = -np.float32([[0.01, 0.3, 0.69, 0.7, 5.0], [2.0, 0.3, 0.1, 0.01, 0.02]])
  fake = trainer(beta=0.25)
  # TRL returns its odds term negated and apart from the likelihood.
  assert_same(
    lambda c, r: losses.orpo_loss(c, r, weight=0.25),
    means,
    lambda c, r: (-c - ORPOTrainer.odds_ratio_loss(fake, c, r)[0]).mean(),
  )


@pytest.mark.parametrize("gap", [0.3, -0.3])
def test_kto(gap):
  desirable, mask = np.array([1, 0, 1, 1, 0], bool), MASKS[0]
  policy, reference = TOKENS[:, 0]
  # The response of the next example; a gap below 0 is one that the estimate cuts off.
  mismatched, kl_mask = np.roll(TOKENS[0, 1], 1, axis=0), np.roll(MASKS[1], 1, axis=0)
  settings = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.8}
  totals = [np.where(kl_mask, mismatched - x, 0).sum(-1) for x in (0, np.float32(gap))]
  ids = torch.zeros((B, T + 1), dtype=torch.long)
  fake = trainer(loss_type="kto", calculate_KL=True, precompute_ref_logps=True, **settings)
  fake._compute_kl_logps = types.MethodType(KTOTrainer._compute_kl_logps, fake)
  inputs = {
    "label": torch.tensor(desirable),
    "input_ids": ids,
    "attention_mask": ids + 1,
    "completion_mask": with_prompt(mask),
    "ref_logps": torch.tensor(np.where(mask, reference, 0).sum(-1)),
    "KL_input_ids": ids + 1,
    "KL_attention_mask": ids + 1,
    "KL_completion_mask": with_prompt(kl_mask),
    "ref_KL_logps": torch.tensor(totals[1]),
  }

  def theirs(tokens):
    def model(**inputs):
      # Ids of 1 are the mismatched pairs.
      if inputs["input_ids"].any():
        return outputs(torch.tensor(mismatched), torch.tensor(kl_mask))
      return outputs(tokens, torch.tensor(mask))

    return KTOTrainer._compute_loss(fake, model, dict(inputs), return_outputs=False)

  def ours(tokens):
    both = (sequence.sequence_log_prob(x, mask) for x in (tokens, reference))
    return losses.kto_loss(*both, desirable, losses.kto_kl_estimate(*totals), **settings)

  assert_same(ours, [policy], theirs)


@pytest.mark.parametrize("margin", [None, 0.4])
def test_reward_model(margin):
  scores = RNG.normal(size=(2, B)).astype(np.float32)
  fake = trainer(args=types.SimpleNamespace(center_rewards_coefficient=0.05))
  inputs = {} if margin is None else {"margin": torch.full((B,), margin)}

  def theirs(chosen, rejected):
    logits = torch.cat([chosen, rejected]).unsqueeze(-1)

    def model(**inputs):
      return types.SimpleNamespace(logits=logits)

    return RewardTrainer.compute_loss(fake, model, dict(inputs))

  assert_same(
    lambda c, r: losses.bradley_terry_loss(c, r, margin=margin, center_coefficient=0.05),
    scores,
    theirs,
  )


def sampled(tokens, **extra):
  """Inputs of TRL's policy-gradient losses, and a method that gives the policy's tokens."""
  ids = torch.zeros((B, T), dtype=torch.long)
  inputs = {
    "prompt_ids": ids[:, :1],
    "prompt_mask": ids[:, :1] + 1,
    "completion_ids": ids,
    "completion_mask": torch.tensor(MASKS[0]).long(),
    "advantages": torch.tensor(ADVANTAGES),
    **extra,
  }
  return inputs, lambda *args, **kwargs: (tokens, torch.zeros(B, T), None)


@pytest.mark.parametrize("level", ["token", "sequence_mean"])
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_grpo_and_gspo(level, kl):
  old, reference = TOKENS[0, 1], TOKENS[1, 0]
  fake = trainer(
    top_entropy_quantile=1.0,
    off_policy_mask_threshold=None,
    importance_sampling_level=level.removesuffix("_mean"),
    beta=kl,
    loss_type="grpo",
    epsilon_low=0.2,
    epsilon_high=0.3,
    use_vllm=False,
    _entropy_bonus_enabled=False,
    args=types.SimpleNamespace(use_bias_correction_kl=False, delta=None),
  )

  def theirs(tokens):
    inputs, fake._get_per_token_logps_and_entropies = sampled(
      tokens,
      old_per_token_logps=torch.tensor(old),
      ref_per_token_logps=torch.tensor(reference),
    )
    return GRPOTrainer._compute_loss(fake, None, inputs)

  def ours(tokens):
    return policy_gradient.clipped_policy_loss(
      tokens,
      old,
      ADVANTAGES,
      MASKS[0],
      level=level,
      clip_low=0.2,
      clip_high=0.3,
      reference_log_probs=reference,
      kl_coefficient=kl,
    )

  assert_same(ours, [TOKENS[0, 0]], theirs)


def test_rloo():
  old = TOKENS[0, 0] + 0.1 * TOKENS[0, 1]
  fake = trainer(epsilon_low=0.2, epsilon_high=0.2)

  def theirs(tokens):
    total = torch.tensor(np.where(MASKS[0], old, 0).sum(-1))
    inputs, fake._get_per_token_logps_and_entropies = sampled(tokens, old_logps=total)
    return RLOOTrainer._compute_loss(fake, None, inputs)

  assert_same(
    lambda tokens: policy_gradient.clipped_policy_loss(
      tokens, old, ADVANTAGES, MASKS[0], level="sequence_sum"
    ),
    [TOKENS[0, 0]],
    theirs,
  )


@pytest.mark.parametrize("average", [False, True])
def test_sequence_log_probs(average):
  logits = RNG.normal(0, 2, (B, T, V)).astype(np.float32)
  tokens = RNG.integers(0, V, (B, T))
  # TRL shifts by itself; the first token has no prediction.
  mask = MASKS[0] & (np.arange(T) > 0) | (np.arange(T) == 1)
  labels = torch.tensor(np.where(mask, tokens, -100))
  assert_same(
    lambda z: sequence.sequence_log_prob(
      sequence.causal_token_log_probs(z, tokens), mask, normalize_length=average
    ),
    [logits],
    lambda z: CPOTrainer.get_batch_logps(z, labels, average_log_prob=average).mean(),
  )


@pytest.mark.parametrize(
  ("ours", "theirs", "arguments"),
  [
    (losses.slic_loss, formulas.slic, TOKENS[0, :, :, 0]),
    (losses.plackett_luce_loss, formulas.plackett_luce, [REWARDS]),
    (
      lambda means, totals: losses.rrhf_loss(means, REWARDS, sequence_log_probs=totals),
      lambda means, totals: formulas.rrhf(means, totals, torch.tensor(REWARDS)),
      [-np.abs(REWARDS[::-1]), 10 * REWARDS - 30],
    ),
    (policy_gradient.group_advantages, formulas.group_advantages, [REWARDS]),
    (policy_gradient.leave_one_out_advantages, formulas.leave_one_out_advantages, [REWARDS]),
    (
      lambda x: coverage.coverage_loss(x, num_samples=16.0),
      lambda x: formulas.coverage(x, 16.0),
      [-np.linspace(0.01, 6, 9, dtype=np.float32)],
    ),
  ],
  ids=["slic", "plackett_luce", "rrhf", "group", "leave_one_out", "coverage"],
)
def test_formulas_that_trl_does_not_have_apart(ours, theirs, arguments):
  # Advantages have a mean of 0: weights bring out what differs.
  def weighted(values):
    return values * np.arange(1, values.shape[-1] + 1, dtype=np.float32)

  assert_same(
    lambda *xs: weighted(ours(*xs)),
    [np.ascontiguousarray(x) for x in arguments],
    lambda *xs: (theirs(*xs) * torch.arange(1, theirs(*xs).shape[-1] + 1)).mean(),
  )
