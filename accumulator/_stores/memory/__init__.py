"""Rows in memory: their numbers, their pages, the copy that they get. No disk."""
