"""A finished task leaves its network as a plain torch module, which needs this package no more."""
