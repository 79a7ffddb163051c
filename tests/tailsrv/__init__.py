"""The broadcaster."""
