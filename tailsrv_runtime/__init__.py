"""What every daemon needs: the event loop, listening, access, logs, metrics, options, durable files."""
