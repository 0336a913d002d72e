"""One temperature does not mend networks where classes overlap; mixup spreads their predictions."""
