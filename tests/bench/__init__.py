"""Measurements: ``python -m tests.bench [FILES]``, ``python -m tests.bench tree [ROW ...]``. Needs root; leaves nothing behind."""
