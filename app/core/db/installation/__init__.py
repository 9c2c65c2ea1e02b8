"""What an installation is: its stores and its signing key, in one row."""
