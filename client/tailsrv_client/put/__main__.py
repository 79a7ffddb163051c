"""``python -m tailsrv_client.put``."""

from tailsrv_client.put.cli import main

main()
