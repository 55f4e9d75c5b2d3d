"""FastStream: a typed subscriber of a consumer group on a stream."""

import asyncio

import redis
from faststream.redis import RedisBroker, StreamSub
from pydantic import BaseModel

from benchmarks.peers.common import Clock, Given, order


class OrderCreated(BaseModel):
    order_id: str
    customer_id: str
    total: str
    lines: list[str]


async def main() -> None:
    given, done = Given(), asyncio.Event()
    clock, broker = Clock(given, done.set), RedisBroker(given.url, logger=None)

    @broker.subscriber(stream=StreamSub("orders", group="email", consumer="c"))
    async def handle(event: OrderCreated) -> None:
        clock.tick(event.order_id)

    with redis.Redis.from_url(given.url) as client:  # its own would begin at the end of the stream
        client.xgroup_create("orders", "email", "0", mkstream=True)
    await broker.connect()
    for number in range(given.total):
        await broker.publish(OrderCreated(**order(number)), stream="orders")
    await broker.start()
    await done.wait()
    await broker.stop()
    clock.tell()


if __name__ == "__main__":
    asyncio.run(main())
