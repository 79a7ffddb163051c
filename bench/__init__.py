"""What the daemons cost beside the least that their work can cost; bench/README.md says how to read it."""
