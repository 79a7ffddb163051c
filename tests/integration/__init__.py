"""Real programs from Debian, and the commands that a newcomer types."""
