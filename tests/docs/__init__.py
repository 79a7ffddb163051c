"""The pages of docs/ and the README: what they show runs, and their links lead somewhere."""
