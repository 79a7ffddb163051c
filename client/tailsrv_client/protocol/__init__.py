"""What the clients say and understand, without I/O: bytes, steps and decisions."""
