"""Early exits whose gates are trained jointly with the classifiers that they open."""
