"""Whole commands as users start them: one file for each command, and files for what all daemons promise alike."""
