"""One program a paper: `python -m experiments` lists them."""
