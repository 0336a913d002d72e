"""Calls of functions of models; networks themselves are lowered with the papers' steps."""

import numpy as np

from jaxlab.models import decoder_config
from tests.contracts.calls import KEY, B, b, c, call, f, u

_CONFIG = decoder_config(vocab_size=8, hidden_size=4, num_layers=1, num_heads=1)

TABLE = {
  "all_pairs_patch_logits": call(f(2, 2, 4), f(5, 2, 4), ratio=0.3),
  "apply_rotary": call(f(B, 4, 2, 4), c(B, 4), u(2)).but(keeps=True),
  "base_kernels": call(c(B, 2)).but(skip={"nan": "integers"}),
  "cauchy_kernel": call(5),
  "context_query_mask": call(5, 2),
  "gate_features": call(f(B, 4)),
  "ghost_batch_norm": call(f(4, 2), u(2), f(2), f(2), u(2), ghost_batch_size=2).but(
    static="momentum epsilon", keeps=True
  ),
  "gp_prior_log_prob": call(f(B, 5, 2), np.eye(5, dtype=np.float32)),
  "init_cache": call(_CONFIG, batch_size=2, max_length=4),
  "init_patch_cnn": call(KEY, dim=4).but(static="scale"),
  "interleave_pairs": call(f(B, 4, 2), f(B, 4)),
  "masked_attention": call(f(B, 2, 4), f(B, 5, 4), f(B, 5, 4), b(B, 5), num_heads=2),
  "mean_and_variance": call(f(B, 2)),
  "mixed_batch_norm": call(f(4, 2), u(2), f(2), f(2), u(2), source_weight=0.5).but(
    static="epsilon", keeps=True
  ),
  "patch_cnn_logits": call(f(2, 2, 4), f(B, 2, 4)),
  "scatter_all_features": call(f(B, 1, 5), max_dilation_log2=1),
  "scatter_features": call(f(B, 4, 5), c(2, 3)),
  "pool_states": call(f(B, 5, 2), b(B, 5)),
  "time_encoding": call(u(5, 4), width=4),
}
