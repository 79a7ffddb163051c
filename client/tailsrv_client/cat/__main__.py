"""``python -m tailsrv_client.cat``."""

from tailsrv_client.cat.cli import main

main()
