"""`tunery download`, and what else the client downloads."""
