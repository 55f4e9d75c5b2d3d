"""The tests of streamlib."""
