"""Unit groups: which layers' units belong together, and who reads them."""
