"""Queries about machines: which jobs fit them, and which machines are drained."""
