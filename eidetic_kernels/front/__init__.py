"""Reads a network's forward as a graph of ATen operations and finds whose each number is."""
