"""Engines and frameworks that run a model, each named after its library, which is imported with it."""
