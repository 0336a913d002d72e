"""RAIN: a model judges its own partial answers, and rewinds from those that it finds harmful."""
