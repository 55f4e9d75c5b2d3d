"""Other libraries under the same load: one module each, `PYTHON -m benchmarks.peers.NAME URL EVENTS WARM`.

Each puts its events into its queue, starts one worker process as its documentation does, with a handler that does
nothing, and prints what was measured as JSON. They import nothing of streamlib: their Python may be another one.
"""
