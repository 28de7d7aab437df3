"""Fuzzing of what comes from outside; the corpus holds inputs worth keeping."""
