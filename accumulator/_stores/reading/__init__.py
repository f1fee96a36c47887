"""A store is opened, checked and read here; nothing of it is believed unseen, and nothing is changed.

It may come from a stranger, be damaged, or be written meanwhile by another process.
"""
