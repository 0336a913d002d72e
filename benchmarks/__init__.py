"""Side-by-side measurements against peers: one script per table, ratios from one run each."""

TABLES = (
  "pfn_step",
  "posterior",
  "curves",
  "conv_scan",
  "seeds",
  "losses",
  "mixup",
  "adaptation",
  "preference",
  "displacement",
  "win_rates",
  "votes",
  "generation",
  "two_models",
  "bucketing",
  "dpo_step",
  "reinforce",
  "engine_overhead",
  "imports",
)
