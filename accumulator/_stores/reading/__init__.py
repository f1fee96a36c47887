"""A store is opened and checked here; nothing of it is believed unseen."""
