"""Direct epistemic uncertainty prediction: a second model learns the error of the first."""
