"""`tailsrv-up`: the daemons of one stream, started together, watched, and stopped together."""
