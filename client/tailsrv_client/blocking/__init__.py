"""The clients on blocking sockets and threads."""
