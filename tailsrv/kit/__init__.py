"""What is true of any file, socket and daemon. Imports nothing else of ours."""
