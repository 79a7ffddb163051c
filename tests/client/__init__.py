"""The message-level clients: their pure cores, their faces against real daemons, their commands."""
