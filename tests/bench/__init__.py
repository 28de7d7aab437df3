"""Measurements: ``python -m tests.bench [FILES]``. Needs root; leaves nothing behind."""
