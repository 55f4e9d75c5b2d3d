"""Runs one case in this process: `python -m benchmarks.child CASE URL SIZE` prints its Run as JSON on a line."""

import asyncio
import sys

import msgspec
import uvloop

from benchmarks.case import Run, Size
from benchmarks.cases import CASES
from streamlib.cli.run import tame_collector
from streamlib.logs import setup_logging
from streamlib.settings import LogSettings


def main(name: str, url: str, size: str) -> None:
    setup_logging(LogSettings(level="warning"), secrets=[])
    given = msgspec.json.decode(size, type=Size)
    tame_collector()  # as in `streamlib run`, and for loops without a platform too
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the loop that `streamlib run` takes
        run: Run = runner.run(_run(name, url, given))
    print(msgspec.json.encode(run).decode())


async def _run(name: str, url: str, size: Size) -> Run:
    run = CASES[name].run
    assert run is not None, f"{name} is no case of this process"
    return await run(url, size)


if __name__ == "__main__":
    main(*sys.argv[1:])
