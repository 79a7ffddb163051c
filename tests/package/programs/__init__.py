"""Three programs as a user writes them; type checkers read them as strictly as they can."""
