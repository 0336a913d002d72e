"""Series: features of them, and missing values in them."""
