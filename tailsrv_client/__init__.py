"""Message-level clients."""
