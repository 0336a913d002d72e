"""What the search on pilot seeds chose: experiments/selections/c_mixup.json."""

from experiments.mixing_adaptation.c_mixup.mixing import Setting

CHOSEN: dict[str, dict[str, Setting]] = {}
