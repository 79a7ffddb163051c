"""Both distributions: what their archives contain, what they install, and that programs can use them."""
