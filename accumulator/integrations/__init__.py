"""Engines that run a model on many machines, each named after its library, which is imported with it."""
