"""What writers and readers of a store agree on."""
