"""Calls of samplers: tokens, sequences, walkers, tasks, partners."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab.samplers import (
  LinearTasks,
  expand_leaf,
  init_rewind_tree,
  ridge_prior,
  table_decode_fns,
)
from tests.contracts.calls import KEY, B, Built, b, c, call, f, keys, n, p, u

_TABLE = f(4, 4)
_LENGTHS = np.array([2, 1, 2], np.int32)
_PROJECTION = {"input_dim": 2, "output_dim": 4, "num_classes": 4}
_DECODING = {"max_new_tokens": 3, "eos_token_id": 0}
_LOOP = {"gradients": "loop"}
_STEPS = {"gradients": "steps"}


def _model(function, table, *args, **kwargs):
  return function(table_decode_fns(table), *args, **kwargs)


def _keyed(function, key, table, *args, **kwargs):
  return function(key, table_decode_fns(table), *args, **kwargs)


def _decode_with_two(function, key, first, second, *args, **kwargs):
  return function(key, table_decode_fns(first), table_decode_fns(second), *args, **kwargs)


def _nudge(function, base, nudging, *args, **kwargs):
  return function(table_decode_fns(base), table_decode_fns(nudging), *args, **kwargs)


def _resample(function, key, mean, **kwargs):
  return function(key, jax.tree_util.Partial(_draw, mean), _is_positive, **kwargs)


def _draw(mean, key):
  return mean + jax.random.normal(key, mean.shape)


def _is_positive(sample):
  return sample[:, 0] > 0


def _log_density(position):
  return -jnp.sum(jnp.square(position))


def _propose(key, state):
  del key
  return jnp.arange(2), jnp.log(jnp.full(2, 0.5)) * state


def _move(state, action):
  return state + action, jnp.where(state + action > 3, 1, 0)


def _draw_weight(key):
  return jax.random.normal(key, (2,))


def _square(params, rows):
  return jnp.mean(jnp.square(params[None] - rows[:, None]))


def _verdict(tokens, length):
  return jnp.sin(1.0 * jnp.sum(tokens) + length)


def _embedding(tokens, length):
  return jnp.stack([1.0 + jnp.sum(tokens), 1.0 * length])


def _grown():
  tree = init_rewind_tree(capacity=6, embedding_dim=2, set_width=2)
  return expand_leaf(tree, 0, np.ones((2, 2), np.int32), np.array([2, 1]), np.array([0.6, 0.4]))


_TREE = Built(_grown)
_INDEX = np.array(1, np.int32)


TABLE = {
  "affine_invariant_mcmc": call(KEY, _log_density, f(6, 2), num_steps=2).but(
    static="stretch", skip=_LOOP
  ),
  "apply_backspaces": call(c(B, 5), c(B), backspace_token_id=1),
  "apply_projection_task": call(f(B, 5, 2), c(B, 5), f(B, 4, 2), c(B, 4)),
  "apply_repetition_penalty": call(f(B, 4), b(B, 4), penalty=1.2).but(keeps=True),
  "backspace_layout": call(c(B, 2), c(B, 5), c(B), backspace_token_id=1),
  "backup_level": call(
    f(5), u(5), c(5), f(5, 2), b(5), child_index=_INDEX, path_embedding=f(2), value=0.5
  ).but(skip=_STEPS),
  "backup_path": call(_TREE, np.array([0, 1, -1, -1], np.int32), f(4, 2), 0.5).but(skip=_STEPS),
  "beam_search": call(_TABLE, c(B, 2), _LENGTHS, num_beams=2, **_DECODING).but(
    use=_model, skip=_LOOP
  ),
  "best_first_search": call(
    KEY, _propose, _move, np.array(1.0, np.float32), num_expansions=2, branching=2, max_depth=2
  ).but(skip=_LOOP),
  "best_of_n": call(f(B, 4)),
  "bnn_prior": call(KEY, batch_size=2, num_points=4, max_hidden=4, group_size=1),
  "candidate_priors": call(0.3, u(5)),
  "commit_move": call(_TREE),
  "context_size_probs": call(4),
  "direct_estimate": call(f(8, 8), c(B), c(B), c(B), num_variables=4).but(use=_model),
  "draw_data_sets": call(keys(2), partial(ridge_prior, batch_size=2, num_points=4)),
  "draw_data_sets:one": call(
    keys(2), partial(ridge_prior, batch_size=2, num_points=4), one_by_one=True
  ),
  "expand_leaf": call(_TREE, _INDEX, c(2, 2), c(2), u(2)),
  "ensemble_log_probs": call(f(B, 4), f(B, 4)),
  "entropy_adaptive_decode": call(
    KEY, _TABLE, _TABLE, c(B, 2), _LENGTHS, threshold=1.0, window=2, min_dwell=1, **_DECODING
  ).but(use=_decode_with_two, skip=_LOOP),
  "filter_min_p": call(f(B, 4), min_p=0.1).but(keeps=True),
  "filter_top_k": call(f(B, 4), top_k=2).but(keeps=True),
  "filter_top_p": call(f(B, 4), top_p=0.7).but(keeps=True),
  "filter_typical_p": call(f(B, 4), typical_p=0.7).but(keeps=True),
  "fit_weibull_mixture": call(u(B, 5), mask=b(B, 5), num_steps=2),
  "free_estimate": call(KEY, f(8, 8), c(B), c(B), c(B), num_variables=4, num_samples=2).but(
    use=_keyed, skip=_LOOP
  ),
  "generate": call(KEY, _TABLE, c(B, 2), _LENGTHS, temperature=0.7, top_p=0.9, **_DECODING).but(
    use=_keyed, skip=_LOOP
  ),
  "generate:greedy": call(KEY, _TABLE, c(B, 2), _LENGTHS, temperature=0, **_DECODING).but(
    use=_keyed, skip=_LOOP
  ),
  "generate_n": call(KEY, _TABLE, c(B, 2), _LENGTHS, num_samples=2, **_DECODING).but(
    use=_keyed, skip=_LOOP
  ),
  "generate_with_backspace": call(
    KEY, _TABLE, c(B, 2), _LENGTHS, backspace_token_id=1, max_steps=4, temperature=0.7, **_DECODING
  ).but(use=_keyed, skip=_LOOP),
  "gp_hyper_prior": call(KEY, batch_size=2, num_points=4).but(static="min_noise"),
  "gp_prior": call(KEY, batch_size=2, num_points=4),
  "init_rewind_tree": call(capacity=4, embedding_dim=2),
  "initial_walkers": call(KEY, f(5, 2), f(5), num_walkers=4).but(keeps=True),
  "insert_corrections": call(c(B, 5), c(B), b(B, 5), c(B, 5), backspace_token_id=1),
  "kernel_interpolants": call(KEY, f(5, 2), f(5, 4), f(2, 2), num_samples=4),
  "kernel_interpolants_from_noise": call(f(5, 2), f(5, 4), f(2, 2), f(2, 4, B)),
  "label_similarity_logits": call(f(5, 2), f(B, 2), bandwidth=0.5),
  "label_similarity_probabilities": call(f(5, 2), bandwidth=0.5),
  "majority_vote": call(c(B, 4), weights=u(B, 4), mask=b(B, 4)).but(skip=_STEPS),
  "markov_beam_search": call(_TABLE, c(B), num_beams=2, **_DECODING).but(skip=_LOOP),
  "markov_entropy_adaptive_decode": call(
    _TABLE, _TABLE, c(B), threshold=1.0, window=2, min_dwell=1, **_DECODING
  ).but(skip=_LOOP),
  "markov_greedy": call(_TABLE, c(B), **_DECODING).but(skip=_LOOP),
  "mix_prior": call(u(5)),
  "prefill": call(_TABLE, c(B, 2), _LENGTHS, max_length=4).but(use=_model),
  "previous_label_one_hot": call(c(B, 5), num_classes=4),
  "process_logits": call(f(B, 4), temperature=0.7, top_k=3, top_p=0.9, min_p=0.01, typical_p=0.9),
  "projection_task": call(KEY, input_dim=2, output_dim=4, num_classes=4),
  "rewind_generate": call(
    KEY,
    _TABLE,
    np.array([1, 2], np.int32),
    evaluate_fn=_verdict,
    embed_fn=_embedding,
    num_candidates=2,
    set_lengths=(1, 2),
    max_iterations=2,
    extra_iterations=1,
    clause_end_ids=3,
    **_DECODING,
  ).but(use=_keyed, skip=_LOOP),
  "markov_nudged_decode": call(_TABLE, _TABLE, c(B), **_DECODING).but(skip=_LOOP),
  "perplexity_consistency_confidence": call(c(B, 4), n(B, 4), path_ids=c(B, 4)),
  "perplexity_select": call(n(B, 4)),
  "needs_nudge": call(f(B, 4)),
  "nudged_decode": call(
    _TABLE, _TABLE, c(B, 2), _LENGTHS, c(B, 2), _LENGTHS, word_start=b(4), **_DECODING
  ).but(use=_nudge, skip=_LOOP),
  "proxy_tuning_log_probs": call(f(B, 4), f(B, 4), f(B, 4)),
  "pruned_consistency_confidence": call(c(B, 5), n(B, 5), path_ids=c(B, 5), num_steps=2),
  "random_switching_decode": call(
    KEY, _TABLE, _TABLE, c(B, 2), _LENGTHS, large_fraction=0.5, min_dwell=2, **_DECODING
  ).but(use=_decode_with_two, skip=_LOOP),
  "reasoning_prune_mask": call(u(B, 4), weight=u(B), shape=u(B, 2), scale=u(B, 2)),
  "resample_until_accepted": call(KEY, f(B, 4), max_attempts=2).but(use=_resample, skip=_LOOP),
  "ridge_prior": call(KEY, batch_size=2, num_points=4),
  "sample_context_size": call(KEY, 4, min_context=1),
  "sample_from_pool": call(KEY, LinearTasks(f(5, 2), u(5)), batch_size=2).but(keeps=True),
  "sample_linear_regression": call(KEY, LinearTasks(f(B, 2), u(B)), num_points=4),
  "sample_linear_tasks": call(KEY, batch_size=2, num_features=4),
  "sample_partner_table": call(KEY, f(5, 2), num_draws=2, bandwidth=0.5),
  "sample_partners": call(KEY, f(5, 2), c(4), bandwidth=0.5),
  "sample_projection_tasks": call(KEY, batch_size=2, num_tasks=2, task_key=KEY, **_PROJECTION),
  "sample_task_sequences": call(
    KEY, f(5, 2), c(5), batch_size=2, sequence_length=4, output_dim=4, num_classes=4
  ),
  "sample_task_sequences:repeated": call(
    KEY, f(4, 2), c(4), batch_size=2, sequence_length=5, output_dim=4, num_classes=4
  ),
  "sample_without_replacement": call(KEY, f(B, 4), num_samples=2),
  "scaffolded_estimate": call(
    KEY, f(8, 8), c(B), c(B), c(B), c(B, 2), num_variables=4, num_samples=2
  ).but(use=_keyed),
  "score_sequences": call(_TABLE, c(B, 5), c(B), _LENGTHS).but(use=_model),
  "select_leaf": call(_TREE, max_depth=4),
  "selection_scores": call(u(5), c(5), u(5), parent_visits=4.0, min_value=-1.0, max_value=1.0),
  "self_evaluation_score": call(f(B, 2), f(B, 2)).but(skip=_STEPS),
  "should_widen": call(f(5, 2), f(5), set_length=2.0, num_children=4),
  "self_consistency_confidence": call(c(B, 4), mask=b(B, 4)),
  "speculative_decode": call(
    KEY, _TABLE, _TABLE, c(B, 2), _LENGTHS, num_draft_tokens=2, **_DECODING
  ).but(use=_decode_with_two, skip=_LOOP),
  "speculative_verify": call(c(B, 1), p(B, 1, 4), p(B, 2, 4), u(B, 1)),
  "standardized_gp_kernel": call(KEY, f(4, 2), f(5, 2), num_used=1),
  "standardized_gp_prior": call(KEY, num_points=4, num_features=2),
  "stretch_proposal": call(f(B, 2), f(B, 2), u(B)),
  "switch_schedule": call(f(B, 4), window=2, threshold=1.0, min_dwell=1),
  "switching_cost": call(b(B, 4), mask=b(B, 4), small_params=1.0, large_params=4.0),
  "table_best_first_search": call(n(4, 2), c(4, 2), b(4), num_expansions=2, max_depth=2).but(
    skip=_LOOP
  ),
  "table_decode_fns": call(_TABLE, c(B, 2), c(B, 2)).but(
    use=lambda function, table, tokens, positions: function(table).apply(tokens, (), positions)
  ),
  "token_entropy": call(f(B, 4)),
  "trained_hypotheses": call(
    KEY, _draw_weight, _square, optax.sgd(0.1), num_samples=2, num_steps=2, num_examples=5
  ),
  "trained_hypotheses:batches": call(
    KEY,
    _draw_weight,
    _square,
    optax.adam(0.1),
    num_samples=2,
    num_steps=4,
    num_examples=5,
    batch_size=2,
  ),
  "weibull_mixture_log_prob": call(u(B, 4), weight=u(B), shape=u(B, 2), scale=u(B, 2)),
  "weibull_mixture_posterior": call(u(B, 4), weight=u(B), shape=u(B, 2), scale=u(B, 2)),
}
