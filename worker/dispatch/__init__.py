"""Places attempts at jobs on the nodes of a Ray cluster."""
