"""Fault fixtures and the proof harness for the collator's promises; `README.md` says which fixture proves what."""
