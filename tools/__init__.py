"""Programs for building the distributions; neither wheel contains them."""
