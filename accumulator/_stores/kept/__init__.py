"""A run that survives: its store is claimed, recorded in an order that no crash breaks, and recovered.

Rows are written by `writing` and read by `reading`; here is decided which of them count.
"""
