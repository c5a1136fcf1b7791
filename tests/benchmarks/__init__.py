"""Measurements: printed, never asserted. Each is run by `python -m tests.benchmarks.NAME` from the project's folder."""
