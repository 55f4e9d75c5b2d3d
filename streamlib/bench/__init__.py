"""Measures a worker beside a loop written by hand, on the Redis that a user has: `streamlib bench`."""
