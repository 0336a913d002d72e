"""Few-shot segmentation by transductive inference on the features of an ordinary network."""
