"""Message numbers to byte offsets."""
