"""A key in, draws out: prior tasks, context sizes, Markov chains."""

from jaxlab.samplers.contexts import context_size_probs, sample_context_size
from jaxlab.samplers.mcmc import (
  McmcResult,
  StretchProposal,
  affine_invariant_mcmc,
  initial_walkers,
  stretch_proposal,
)
from jaxlab.samplers.mixing import (
  label_similarity_logits,
  label_similarity_probabilities,
  sample_partners,
)
from jaxlab.samplers.priors import PriorBatch, bnn_prior, gp_hyper_prior, gp_prior, ridge_prior

__all__ = [
  "affine_invariant_mcmc",
  "bnn_prior",
  "context_size_probs",
  "gp_hyper_prior",
  "gp_prior",
  "initial_walkers",
  "label_similarity_logits",
  "label_similarity_probabilities",
  "McmcResult",
  "PriorBatch",
  "ridge_prior",
  "sample_context_size",
  "sample_partners",
  "stretch_proposal",
  "StretchProposal",
]
