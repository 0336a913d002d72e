"""A key in, draws out: prior tasks, context sizes, Markov chains."""
