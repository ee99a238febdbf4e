"""Checkpoints of the paper's own implementation."""
