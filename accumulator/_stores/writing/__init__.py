"""Rows go to disk here, in the background."""
