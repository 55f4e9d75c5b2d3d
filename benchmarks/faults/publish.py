"""A process that publishes with a library: `python -m benchmarks.faults.publish APP`.

Each line on stdin is a JSON list of `[n, act, work_s]`, each line on stdout what came of them, in order: "ok" or the
class of the error that the library raised. Needs nothing of streamlib.
"""

import asyncio
import importlib
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

Send = Callable[[int, str, float], Awaitable[Any]]


async def main(name: str) -> None:
    app = importlib.import_module(f"benchmarks.faults.apps.{name}")
    publisher: AbstractAsyncContextManager[Send] = app.publisher()
    async with publisher as send:
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps([await _outcome(send, *words) for words in json.loads(line)]), flush=True)


async def _outcome(send: Send, n: int, act: str, work_s: float) -> str:
    try:
        await send(n, act, work_s)
    except Exception as error:  # noqa: BLE001 - the class of the error is what is asked for
        return type(error).__name__
    return "ok"


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
