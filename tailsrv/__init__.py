"""The broadcaster; it knows bytes and offsets, nothing else."""
