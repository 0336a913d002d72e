"""Methods with a state: `init`/`update` pairs built from the other rooms."""
