"""One short file for each library: its worker as its documentation advises for work that must not be lost."""
