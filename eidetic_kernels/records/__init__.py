"""What is written down: certificates, checkpoints, and the environment they were made in."""
