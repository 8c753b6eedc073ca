"""Experiment configurations: get_config(arg) returns a ConfigDict."""
