"""Calls of functions of models; networks themselves are lowered with the papers' steps."""

from jaxlab.models import decoder_config
from tests.contracts.calls import KEY, B, b, c, call, f, u

_CONFIG = decoder_config(vocab_size=8, hidden_size=4, num_layers=1, num_heads=1)

TABLE = {
  "all_pairs_patch_logits": call(f(2, 2, 4), f(5, 2, 4), ratio=0.3),
  "apply_rotary": call(f(B, 4, 2, 4), c(B, 4), u(2)).but(keeps=True),
  "context_query_mask": call(5, 2),
  "gate_features": call(f(B, 4)),
  "ghost_batch_norm": call(f(4, 2), u(2), f(2), f(2), u(2), ghost_batch_size=2).but(
    static="momentum epsilon", keeps=True
  ),
  "init_cache": call(_CONFIG, batch_size=2, max_length=4),
  "init_patch_cnn": call(KEY, dim=4).but(static="scale"),
  "masked_attention": call(f(B, 2, 4), f(B, 5, 4), f(B, 5, 4), b(B, 5), num_heads=2),
  "mixed_batch_norm": call(f(4, 2), u(2), f(2), f(2), u(2), source_weight=0.5).but(
    static="epsilon", keeps=True
  ),
  "patch_cnn_logits": call(f(2, 2, 4), f(B, 2, 4)),
  "pool_states": call(f(B, 5, 2), b(B, 5)),
}
