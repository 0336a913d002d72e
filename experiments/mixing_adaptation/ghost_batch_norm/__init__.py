"""Large batches lose accuracy by doing too few and too quiet updates, not by being large."""
