"""The test suite; helpers that are not tests live in ``tests.support``."""
