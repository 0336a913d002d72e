"""The tfds builder of MNIST-1D, generated locally."""
