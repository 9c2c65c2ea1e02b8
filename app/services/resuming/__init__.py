"""Creating a job that repeats another one, or goes on from its saved state."""
