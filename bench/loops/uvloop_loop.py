"""The broadcaster on uvloop: the asyncio one, word for word, on another loop."""

import uvloop

from bench.loops import asyncio_loop, common

if __name__ == "__main__":
    uvloop.run(asyncio_loop.serve(*common.begin()))
