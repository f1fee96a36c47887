"""Corrupted and hostile stores, made from good ones by a seed, and what the library must do with them.

As a command it is a worker: it reads seeds, one a line, and answers each with a line of JSON. It may use
little memory, and notes whatever is opened outside of the store.
"""
