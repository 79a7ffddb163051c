"""The collator keeps its promises."""
