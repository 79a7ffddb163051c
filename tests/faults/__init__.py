"""Fault rigs and the proof harness for the collator's promises; `README.md` says which rig proves what."""
