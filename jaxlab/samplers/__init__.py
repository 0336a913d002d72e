"""Functions of a random key that draw tokens, prior tasks, context sizes and Markov chains."""

from jaxlab.samplers.answer_confidence import (
  perplexity_consistency_confidence,
  perplexity_select,
  pruned_consistency_confidence,
  self_consistency_confidence,
)
from jaxlab.samplers.backspace_texts import (
  AppliedBackspaces,
  BackspaceLayout,
  CorrectedActions,
  apply_backspaces,
  backspace_layout,
  insert_corrections,
)
from jaxlab.samplers.backtracking import BacktrackingOutput, generate_with_backspace
from jaxlab.samplers.batch_size_search import (
  BatchSizeSearch,
  compiled_memory_bytes,
  merge_equal_buckets,
  search_batch_size,
  search_batch_size_linear,
)
from jaxlab.samplers.beams import BeamSearchOutput, beam_search, markov_beam_search
from jaxlab.samplers.bucketing import (
  DurationTokenBins,
  assign_buckets,
  bucket_batches,
  effective_duration,
  estimate_duration_bins,
  estimate_duration_token_bins,
  padding_fraction,
)
from jaxlab.samplers.contexts import context_size_probs, sample_context_size
from jaxlab.samplers.decode_fns import (
  DecodeFns,
  Prefilled,
  flax_decode_fns,
  prefill,
  score_sequences,
  table_decode_fns,
)
from jaxlab.samplers.generation import GenerateOutput, generate, generate_n, markov_greedy
from jaxlab.samplers.gp_priors import (
  gp_hyper_prior,
  gp_prior,
  standardized_gp_kernel,
  standardized_gp_prior,
)
from jaxlab.samplers.guided_decoding import (
  NudgedOutput,
  ensemble_log_probs,
  markov_nudged_decode,
  needs_nudge,
  nudged_decode,
  proxy_tuning_log_probs,
)
from jaxlab.samplers.guided_text import Completion, NudgedText, TextModel, nudged_generate_text
from jaxlab.samplers.hypotheses import (
  kernel_interpolants,
  kernel_interpolants_from_noise,
  trained_hypotheses,
)
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
  sample_partner_table,
  sample_partners,
)
from jaxlab.samplers.model_switching import (
  SwitchingOutput,
  entropy_adaptive_decode,
  markov_entropy_adaptive_decode,
  random_switching_decode,
)
from jaxlab.samplers.path_pruning import (
  WeibullMixture,
  fit_weibull_mixture,
  reasoning_prune_mask,
  weibull_mixture_log_prob,
  weibull_mixture_posterior,
)
from jaxlab.samplers.priors import PriorBatch, bnn_prior, draw_data_sets, ridge_prior
from jaxlab.samplers.reasoning_traces import (
  FreeEstimate,
  direct_estimate,
  free_estimate,
  scaffolded_estimate,
)
from jaxlab.samplers.regression_tasks import (
  LinearTasks,
  RegressionSequences,
  sample_from_pool,
  sample_linear_regression,
  sample_linear_tasks,
)
from jaxlab.samplers.rewind_nodes import (
  RewindLevel,
  backup_level,
  candidate_priors,
  mix_prior,
  selection_scores,
  self_evaluation_score,
  should_widen,
)
from jaxlab.samplers.rewind_search import (
  RewindOutput,
  rewind_generate,
)
from jaxlab.samplers.rewind_tree import (
  CommittedMove,
  RewindTree,
  backup_path,
  commit_move,
  expand_leaf,
  init_rewind_tree,
  select_leaf,
)
from jaxlab.samplers.selection import (
  ResampleOutput,
  VoteResult,
  best_of_n,
  majority_vote,
  resample_until_accepted,
)
from jaxlab.samplers.speculative import (
  SpeculativeOutput,
  SpeculativeVerdict,
  speculative_decode,
  speculative_verify,
)
from jaxlab.samplers.switch_control import switch_schedule, switching_cost, token_entropy
from jaxlab.samplers.tasks import (
  ProjectionTask,
  TaskBatch,
  apply_projection_task,
  previous_label_one_hot,
  projection_task,
  sample_projection_tasks,
  sample_task_sequences,
)
from jaxlab.samplers.token_filters import (
  apply_repetition_penalty,
  filter_min_p,
  filter_top_k,
  filter_top_p,
  filter_typical_p,
  process_logits,
)
from jaxlab.samplers.tree_search import (
  DistinctDraws,
  TreeSearchResult,
  best_first_search,
  sample_without_replacement,
  table_best_first_search,
)

__all__ = [
  "affine_invariant_mcmc",
  "AppliedBackspaces",
  "apply_backspaces",
  "apply_projection_task",
  "apply_repetition_penalty",
  "assign_buckets",
  "backspace_layout",
  "BackspaceLayout",
  "BacktrackingOutput",
  "backup_level",
  "backup_path",
  "BatchSizeSearch",
  "beam_search",
  "BeamSearchOutput",
  "best_first_search",
  "best_of_n",
  "bnn_prior",
  "bucket_batches",
  "candidate_priors",
  "commit_move",
  "CommittedMove",
  "compiled_memory_bytes",
  "Completion",
  "context_size_probs",
  "CorrectedActions",
  "DecodeFns",
  "direct_estimate",
  "DistinctDraws",
  "draw_data_sets",
  "DurationTokenBins",
  "effective_duration",
  "ensemble_log_probs",
  "entropy_adaptive_decode",
  "estimate_duration_bins",
  "estimate_duration_token_bins",
  "expand_leaf",
  "filter_min_p",
  "filter_top_k",
  "filter_top_p",
  "filter_typical_p",
  "fit_weibull_mixture",
  "flax_decode_fns",
  "free_estimate",
  "FreeEstimate",
  "generate",
  "generate_n",
  "generate_with_backspace",
  "GenerateOutput",
  "gp_hyper_prior",
  "gp_prior",
  "init_rewind_tree",
  "initial_walkers",
  "insert_corrections",
  "kernel_interpolants",
  "kernel_interpolants_from_noise",
  "label_similarity_logits",
  "label_similarity_probabilities",
  "LinearTasks",
  "majority_vote",
  "markov_beam_search",
  "markov_entropy_adaptive_decode",
  "markov_greedy",
  "markov_nudged_decode",
  "McmcResult",
  "merge_equal_buckets",
  "mix_prior",
  "needs_nudge",
  "nudged_decode",
  "nudged_generate_text",
  "NudgedOutput",
  "NudgedText",
  "padding_fraction",
  "perplexity_consistency_confidence",
  "perplexity_select",
  "prefill",
  "Prefilled",
  "previous_label_one_hot",
  "PriorBatch",
  "process_logits",
  "projection_task",
  "ProjectionTask",
  "proxy_tuning_log_probs",
  "pruned_consistency_confidence",
  "random_switching_decode",
  "reasoning_prune_mask",
  "RegressionSequences",
  "resample_until_accepted",
  "ResampleOutput",
  "rewind_generate",
  "RewindLevel",
  "RewindOutput",
  "RewindTree",
  "ridge_prior",
  "sample_context_size",
  "sample_from_pool",
  "sample_linear_regression",
  "sample_linear_tasks",
  "sample_partner_table",
  "sample_partners",
  "sample_projection_tasks",
  "sample_task_sequences",
  "sample_without_replacement",
  "scaffolded_estimate",
  "score_sequences",
  "search_batch_size",
  "search_batch_size_linear",
  "select_leaf",
  "selection_scores",
  "self_consistency_confidence",
  "self_evaluation_score",
  "should_widen",
  "speculative_decode",
  "speculative_verify",
  "SpeculativeOutput",
  "SpeculativeVerdict",
  "standardized_gp_kernel",
  "standardized_gp_prior",
  "stretch_proposal",
  "StretchProposal",
  "switch_schedule",
  "switching_cost",
  "SwitchingOutput",
  "table_best_first_search",
  "table_decode_fns",
  "TaskBatch",
  "TextModel",
  "token_entropy",
  "trained_hypotheses",
  "TreeSearchResult",
  "VoteResult",
  "weibull_mixture_log_prob",
  "weibull_mixture_posterior",
  "WeibullMixture",
]


def __dir__():
  return __all__
