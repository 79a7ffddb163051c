"""tailsrv-put: standard input or a growing file into a stream."""
