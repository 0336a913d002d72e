"""Weight-aware distillation: pseudo labels from a contrastive teacher, weighted by their margin."""
