"""Training a task and training the router: the paper's procedure."""
