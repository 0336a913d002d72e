"""Few-shot fine-tuning against source-free adaptation without labels."""
