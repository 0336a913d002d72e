"""Label maps: several labels of an image, and each where its object is."""
