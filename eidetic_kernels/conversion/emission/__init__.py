"""Builds the network's graph from the captured one: layers that know segments, sizes that follow pruning."""
