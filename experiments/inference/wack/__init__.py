"""Wrong answers of a model that does not know, and of one that errs although it knows."""
