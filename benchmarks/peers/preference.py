"""Preference objectives in PyTorch, each formula as a PyTorch user would write it."""

import torch
import torch.nn.functional as F


def dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.1, smoothing=0.0):
  """Direct preference optimization."""
  margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
  return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def robust_dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.1, smoothing=0.1):
  """DPO debiased for flipped pairs."""
  margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
  terms = -(1 - smoothing) * F.logsigmoid(margin) + smoothing * F.logsigmoid(-margin)
  return terms / (1 - 2 * smoothing)


def ipo(chosen, rejected, ref_chosen, ref_rejected, beta=0.1):
  """Identity preference optimization, by sums."""
  return ((chosen - ref_chosen) - (rejected - ref_rejected) - 1 / (2 * beta)) ** 2


def hinge(chosen, rejected, ref_chosen, ref_rejected, beta=0.1):
  """Hinge of the margin between log-ratios."""
  return torch.relu(1 - beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def slic(chosen, rejected, margin=1.0):
  """Hinge between two sequences."""
  return torch.clamp(margin - chosen + rejected, min=0)


def simpo(chosen, rejected, chosen_lengths, rejected_lengths, beta=2.0, margin=1.0):
  """Logistic loss of the difference of means."""
  means = chosen / chosen_lengths.clamp(min=1), rejected / rejected_lengths.clamp(min=1)
  return -F.logsigmoid(beta * (means[0] - means[1]) - margin)


def orpo(chosen, rejected, weight=0.1):
  """Likelihood and log odds ratio, of means."""
  complements = (_log1mexp(x.clamp(max=-1e-7)) for x in (chosen, rejected))
  log_odds = (chosen - rejected) - (next(complements) - next(complements))
  return -chosen - weight * F.logsigmoid(log_odds)


def _log1mexp(x):
  return torch.where(x < -0.6931472, torch.log1p(-torch.exp(x)), torch.log(-torch.expm1(x)))


def kto(policy, reference, desirable, kl_estimate, beta=0.1):
  """Saturating value of single responses."""
  gain = beta * (policy - reference - kl_estimate)
  return torch.where(desirable, 1 - torch.sigmoid(gain), 1 - torch.sigmoid(-gain))


def rrhf(means, totals, rewards):
  """Hinges of all pairs and the likelihood of the best."""
  worse = rewards.unsqueeze(-1) < rewards.unsqueeze(-2)
  excess = torch.relu(means.unsqueeze(-1) - means.unsqueeze(-2))
  best = totals.gather(-1, rewards.argmax(-1, keepdim=True)).squeeze(-1)
  return (worse * excess).sum((-1, -2)) - best


def plackett_luce(scores):
  """Negative log-likelihood of a ranking, best first."""
  return (torch.logcumsumexp(scores.flip(-1), -1).flip(-1) - scores).sum(-1)


def bradley_terry(chosen, rejected, coefficient=0.01):
  """Reward model's loss with centering."""
  return -F.logsigmoid(chosen - rejected) + coefficient * (chosen + rejected) ** 2


def clipped_policy(log_probs, old, reference, advantages, mask, level="token", clip=0.2, kl=0.04):
  """GRPO's objective, and its relatives at the level of sequences."""
  count, log_ratio = mask.sum(-1).clamp(min=1), (log_probs - old) * mask
  if level == "token":
    advantages = advantages.unsqueeze(-1)
  else:
    log_ratio = log_ratio.sum(-1) / (count if level == "sequence_mean" else 1)
  ratio = torch.exp(log_ratio)
  loss = -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
  if level == "token":
    loss = (loss * mask).sum(-1) / count
  gap = reference - log_probs
  return loss + kl * ((torch.exp(gap) - gap - 1) * mask).sum(-1) / count


def group_advantages(rewards):
  """Rewards standardized in their group."""
  centered = rewards - rewards.mean(-1, keepdim=True)
  return centered / (rewards.std(-1, keepdim=True) + 1e-4)


def leave_one_out_advantages(rewards):
  """Rewards less the mean of the others."""
  others = (rewards.sum(-1, keepdim=True) - rewards) / (rewards.shape[-1] - 1)
  return rewards - others


def coverage(log_probs, num_samples):
  """Negative log-probability of a success in N samples."""
  return -_log1mexp(num_samples * _log1mexp(log_probs))
