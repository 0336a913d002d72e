"""flax.linen modules, and what sits on a trained one."""
