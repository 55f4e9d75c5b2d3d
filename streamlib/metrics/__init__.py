"""Metrics and probes: what is counted, how it is served, and how the processes of one worker are added up."""
