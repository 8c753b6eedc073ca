"""`python -m crate_jax.segment`: a folder of images through a network and a method to files."""
