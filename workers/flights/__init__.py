"""Departures from New York's airports as events: statistics, late-flight notices and two boards."""
