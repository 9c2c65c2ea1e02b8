"""Attacks on a service whose jobs run in a Ray cluster, and what they need."""
