"""tailsrv-cat: a stream on standard output."""
