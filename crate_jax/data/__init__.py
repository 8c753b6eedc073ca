"""Datasets, transforms and the input pipeline. Nothing here touches a JAX backend."""
