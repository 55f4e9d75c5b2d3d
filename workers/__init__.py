"""Applications on streamlib, each one runnable: `streamlib run workers.flights.app:app`."""
