"""Parameter pytrees in, parameter pytrees and scalars out."""
