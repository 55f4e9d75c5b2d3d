"""State machines: random steps on the real scripts, and after each of them the server is as a plain model says."""
