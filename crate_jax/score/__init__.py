"""`python -m crate_jax.score`: a network on a dataset, to scores with intervals."""
