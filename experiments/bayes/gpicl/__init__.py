"""General-purpose learning in context: classifiers of tasks that no training has seen."""
