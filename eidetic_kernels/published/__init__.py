"""Checkpoints of the published implementation, and the networks that hold what they hold."""
