"""C-Mixup: partners of a mix drawn by how near their regression targets are."""
