"""Questions with false premises about pictures, and a warning before them."""
