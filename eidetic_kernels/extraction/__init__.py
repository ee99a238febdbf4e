"""A finished task leaves as a plain torch module."""
