"""Papers on aligning language models with how they will be used."""
