"""Everything that knows all daemons."""
