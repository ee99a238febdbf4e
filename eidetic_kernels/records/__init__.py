"""What is written down of a network: certificates, checkpoints, and the environment they were made in."""
