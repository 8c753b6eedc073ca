"""CRATE and the networks that it is compared with."""
