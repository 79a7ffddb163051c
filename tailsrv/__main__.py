"""`python -m tailsrv`."""

from tailsrv.cli import main

main()
