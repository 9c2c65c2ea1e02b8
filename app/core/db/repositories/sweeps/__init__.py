"""Queries on sweeps, and on the checks of data that the jobs of a sweep share."""
