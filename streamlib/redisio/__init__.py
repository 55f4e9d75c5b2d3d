"""Floor 1: the only rooms that speak to Redis."""
