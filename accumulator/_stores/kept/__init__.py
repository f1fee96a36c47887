"""A run that survives: claimed, recorded, recovered."""
