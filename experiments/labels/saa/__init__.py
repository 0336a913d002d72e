"""Sample-adaptive augmentation: more diverse views of rows that strong views no longer teach."""
