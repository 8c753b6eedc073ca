"""Checkpoints in and out: PyTorch, safetensors, NumPy archives, StableHLO."""
