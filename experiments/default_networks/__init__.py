"""The networks behind `PFNRegressor()` and `PFNClassifier()`."""
