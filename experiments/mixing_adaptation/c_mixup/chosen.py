"""What the search on pilot seeds chose: experiments/selections/c_mixup.json."""

from experiments.mixing_adaptation.c_mixup.mixing import INPUTS, MAIN, MIXUP, PLAIN, Setting

CHOSEN = {
  "diamonds": {
    PLAIN: Setting(weight_decay=2.0, mixes=0.0),
    MIXUP: Setting(weight_decay=1.5, alpha=0.1),
    INPUTS: Setting(weight_decay=1.5, alpha=2.0, feature_bandwidth=0.05),
    MAIN: Setting(weight_decay=1.5, alpha=0.5, bandwidth=0.3),
  },
  "computers": {
    PLAIN: Setting(weight_decay=0.3, mixes=0.0),
    MIXUP: Setting(weight_decay=0.5, alpha=0.1),
    INPUTS: Setting(weight_decay=0.5, alpha=0.1, feature_bandwidth=0.05),
    MAIN: Setting(weight_decay=0.5, alpha=0.1, bandwidth=0.05),
  },
  "nox": {
    PLAIN: Setting(weight_decay=0.7, mixes=0.0),
    MIXUP: Setting(weight_decay=0.5, alpha=0.1),
    INPUTS: Setting(weight_decay=0.5, alpha=2.0, feature_bandwidth=0.3),
    MAIN: Setting(weight_decay=0.5, alpha=0.1, bandwidth=0.05),
  },
  "friedman": {
    PLAIN: Setting(weight_decay=1.0, mixes=0.0),
    MIXUP: Setting(weight_decay=0.5, alpha=0.1),
    INPUTS: Setting(weight_decay=1.5, alpha=2.0, feature_bandwidth=0.05),
    MAIN: Setting(weight_decay=1.5, alpha=0.1, bandwidth=0.05),
  },
  "rotated digits": {
    PLAIN: Setting(learning_rate=0.002, weight_decay=1.0, mixes=0.0),
    MIXUP: Setting(learning_rate=0.002, weight_decay=0.5, alpha=0.5),
    INPUTS: Setting(learning_rate=0.002, weight_decay=1.5, alpha=2.0, feature_bandwidth=0.05),
    MAIN: Setting(learning_rate=0.002, weight_decay=0.5, alpha=0.1, bandwidth=0.3),
  },
}
