"""What knows all the parts: launcher, demo, recipes."""
