"""The life of tasks in a network: pruning, snapshots, optimizer state, capacity, routing, frozen features."""
