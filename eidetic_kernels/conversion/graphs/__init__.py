"""A plain module's forward as a graph: captured, compared in both modes, and written in fewer ways."""
