"""Analyses of captured arrays: they know arrays, not models."""
