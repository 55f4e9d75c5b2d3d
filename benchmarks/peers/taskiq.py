"""taskiq with the stream broker of taskiq-redis: one receiver, without a result backend."""

import asyncio
from typing import Any

from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

from benchmarks.peers.common import Clock, Given, order


async def main() -> None:
    given, done = Given(), asyncio.Event()
    clock, broker = Clock(given, done.set), RedisStreamBroker(given.url)

    @broker.task
    async def handle(event: dict[str, Any]) -> None:
        clock.tick(event["order_id"])

    await broker.startup()
    for number in range(given.total):
        await handle.kiq(order(number))
    receiver = asyncio.create_task(run_receiver_task(broker))
    await done.wait()
    receiver.cancel()
    await asyncio.wait({receiver}, timeout=10)
    await broker.shutdown()
    clock.tell()


if __name__ == "__main__":
    asyncio.run(main())
