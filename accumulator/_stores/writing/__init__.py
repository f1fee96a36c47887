"""Rows go to disk here, behind the caller's back."""
