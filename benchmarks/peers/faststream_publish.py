"""FastStream: a thousand coroutines that await `publish`, with as many connections as they need."""

import asyncio
import time

import redis
from faststream.redis import RedisBroker
from pydantic import BaseModel

from benchmarks.peers.common import Given, order, tell

COROUTINES = 1000


class OrderCreated(BaseModel):
    order_id: str
    customer_id: str
    total: str
    lines: list[str]


async def main() -> None:
    given = Given()
    broker = RedisBroker(given.url, logger=None, max_connections=COROUTINES)
    orders = [OrderCreated(**order(number)) for number in range(given.events)]
    await broker.connect()

    async def publish_some(some: list[OrderCreated]) -> None:
        for one in some:
            await broker.publish(one, stream="orders")

    started_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(publish_some(orders[number::COROUTINES]) for number in range(COROUTINES)))
    seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    await broker.stop()
    with redis.Redis.from_url(given.url) as client:
        tell(given, seconds, client.xlen("orders"), {"cpu_us": cpu_s / given.events * 1e6})


if __name__ == "__main__":
    asyncio.run(main())
