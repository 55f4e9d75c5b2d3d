"""Fuzzing of everything that reads what any program with write access may have put into Redis, or into a pipe."""
