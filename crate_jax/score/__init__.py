"""`python -m crate_jax.score`: a network on a dataset, to figures with intervals."""
