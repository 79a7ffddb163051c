"""The runtime alone: no daemon of ours runs here."""
