"""Measurements: ``python -m tests.bench [FILES | tree [ROW ...]]``. Needs root; leaves nothing behind."""
