"""Runnable measurements: python -m benchmarks.NAME prints a table."""
