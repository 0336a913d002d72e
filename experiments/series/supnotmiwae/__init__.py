"""Series with missing values: imputed by a deep generative model, or simply, and classified."""
