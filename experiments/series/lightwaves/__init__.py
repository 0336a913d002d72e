"""A few hundred features of fixed kernels, selected, against ten thousand random kernels."""
