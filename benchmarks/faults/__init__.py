"""The same faults against streamlib and other libraries, each with its own worker processes on real servers."""
