"""The accumulator and what it is made of: locations in, canonical rows out."""
