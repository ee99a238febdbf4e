"""Follows whose each number is through a captured graph, and sorts units into groups."""
