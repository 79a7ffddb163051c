"""Three event loops under the same small broadcaster: what the choice of the loop costs.

Each serves one file in the same way: a header, then an append is read once and sent to every client
that has caught up. None has manners (limits, timeouts, a commit mark, sendfile for bulk): they are prototypes,
and live on because docs/benchmarks/loops.md must stay reproducible.
"""
