"""Papers on imperfect labels: few, wrong, soft, or of other classes."""
