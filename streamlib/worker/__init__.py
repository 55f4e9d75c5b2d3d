"""Floor 2: what a worker process does with deliveries."""
