"""What the client shows. Nothing that others wrote controls the terminal."""
