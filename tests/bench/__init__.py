"""Measurements: ``python -m tests.bench [FILES | tree [ROW …] | store [ROW …]]``. Needs root, cleans up."""
