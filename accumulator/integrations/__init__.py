"""Engines that run a model on many machines, and frameworks that cut and merge patches.

Each is named after its library, which is imported with it.
"""
