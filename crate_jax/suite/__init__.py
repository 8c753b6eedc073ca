"""Checkpoints at work on images: what `segment` and `score` do, between the rooms they join."""
