"""Many producers, one file."""
