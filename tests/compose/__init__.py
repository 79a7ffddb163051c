"""The kit alone: no daemon of ours runs here."""
