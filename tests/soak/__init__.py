"""A broadcaster among clients that come, go, stall and lie, for as long as one likes: `make soak`.

What it holds at the end, when all of them have left, is what it held when all kinds of them had been there once:
descriptors, threads, memory. Every byte that any client received is checked against its offset.
"""
