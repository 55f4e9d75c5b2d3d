"""Aggregates kept as their events, and the commands that change them."""
