"""What workers can do, and what jobs need."""
