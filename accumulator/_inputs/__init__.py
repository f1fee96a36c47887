"""Raw arguments become checked ones here; nothing is coerced silently."""
