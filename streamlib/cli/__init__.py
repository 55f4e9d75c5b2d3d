"""The command line's door: the `streamlib` group. Importing it costs click and nothing else."""

from streamlib.cli.root import main

__all__ = ["main"]
