"""process-redis-events: one consumer with its default batch and concurrency."""

import asyncio
from typing import Any

from process_redis_events import ProcessOptions, StartFrom, Stream
from redis.asyncio import Redis

from benchmarks.peers.common import Clock, Given, order


async def main() -> None:
    given, done = Given(), asyncio.Event()
    clock = Clock(given, done.set)
    stream: Stream[dict[str, Any]] = Stream(name="orders", create_redis=lambda: Redis.from_url(given.url))

    async def handle(item: Any) -> None:
        clock.tick(item.data["order_id"])

    for number in range(given.total):
        await stream.add(order(number))
    await stream.process(
        options=ProcessOptions(consumer_group="email", signal=done, start_from=StartFrom.OLDEST), callback=handle
    )
    clock.tell()


if __name__ == "__main__":
    asyncio.run(main())
