"""Errors that both the clients and the daemons raise."""

from __future__ import annotations


class TailsrvError(Exception):
    """The root of all errors of this project."""


class UsageError(TailsrvError, ValueError):
    """An argument or a command-line option is invalid; the message says what is valid. Commands exit with code 2."""


def reason(error: OSError) -> str:
    """What the kernel said, without Python's decoration: "Permission denied"."""
    return error.strerror or str(error)
