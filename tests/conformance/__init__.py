"""The guarantees, one file each, run on every kind of server."""
