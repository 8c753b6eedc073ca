"""CRATE, the white-box transformer, in JAX."""

from crate_jax._version import __version__

__all__ = ["__version__"]
