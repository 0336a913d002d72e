"""Effects of concepts on a classifier of texts, by edits and by matched texts."""
