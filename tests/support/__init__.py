"""What tests share: real daemons, real sockets, and ways to wait for events."""
