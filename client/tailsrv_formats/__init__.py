"""Everything that is written to disk or sent over a connection: bytes in, values out, and back.

Pure: no module in here opens a file or a socket, or looks at a clock.
"""
