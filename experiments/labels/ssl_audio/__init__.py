"""Five semi-supervised methods on sounds, with and without mixup."""
