"""ShrinkMatch: uncertain rows teach what they are not."""
