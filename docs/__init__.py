"""The pages of the site, and what makes those that are generated."""
