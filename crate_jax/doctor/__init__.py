"""Looks at the machine and the installation: python -m crate_jax.doctor."""
