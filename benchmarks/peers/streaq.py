"""streaQ: one worker with its default of tasks at once."""

import asyncio
from typing import Any

from streaq import Worker

from benchmarks.peers.common import Clock, Given, order


async def main() -> None:
    given, done = Given(), asyncio.Event()
    clock, worker = Clock(given, done.set), Worker(redis_url=given.url)

    @worker.task()
    async def handle(event: dict[str, Any]) -> None:
        clock.tick(event["order_id"])

    async with worker:
        for start in range(0, given.total, 500):
            tasks = [handle.enqueue(order(number)) for number in range(start, min(start + 500, given.total))]
            await worker.enqueue_many(tasks)
    working = asyncio.create_task(worker.run_async())
    await done.wait()
    await asyncio.sleep(0.5)
    working.cancel()
    await asyncio.wait({working}, timeout=10)
    clock.tell()


if __name__ == "__main__":
    asyncio.run(main())
