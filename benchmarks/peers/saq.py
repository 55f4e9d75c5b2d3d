"""SAQ: one worker with ten jobs at once."""

import asyncio
from typing import Any

from saq import Queue, Worker

from benchmarks.peers.common import Clock, Given, order


async def main() -> None:
    given, done = Given(), asyncio.Event()
    clock, queue = Clock(given, done.set), Queue.from_url(given.url)

    async def handle(ctx: Any, *, event: dict[str, Any]) -> None:
        clock.tick(event["order_id"])

    await queue.connect()
    for number in range(given.total):
        await queue.enqueue("handle", event=order(number))
    worker: Any = Worker(queue, functions=[("handle", handle)], shutdown_grace_period_s=5)
    working = asyncio.create_task(worker.start())
    await done.wait()
    await worker.stop()
    await asyncio.wait({working}, timeout=10)
    clock.tell()


if __name__ == "__main__":
    asyncio.run(main())
