"""The broadcaster; it knows bytes and offsets, nothing else."""

__version__ = "1.0.0"
