"""`python -m crate_jax.demo`: a network that is trained, shown and scored, in a minute."""
