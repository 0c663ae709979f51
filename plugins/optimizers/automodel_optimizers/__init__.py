"""Optimizers that PyTorch doesn't have."""
