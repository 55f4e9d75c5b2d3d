"""redis-stream-queue: a batch callback, without idempotency."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

from redis_stream_queue import ConsumerConfig, StreamClient, StreamConsumer, StreamProducer

from benchmarks.peers.common import Clock, Given, order


async def main() -> None:
    given, done = Given(), asyncio.Event()
    clock, where = Clock(given, done.set), urlsplit(given.url)
    client = StreamClient(host=where.hostname, port=where.port)
    producer = StreamProducer(client=client, stream="orders", group="email")
    await producer.ensure_group()
    for number in range(given.total):
        await producer.push(order(number))

    async def handle(messages: list[Any]) -> list[Any]:
        for message in messages:
            clock.tick(message.data["order_id"])
        return [message.id for message in messages]

    async def on_dlq(message: Any, reason: str) -> None:
        raise RuntimeError(f"a dead letter: {reason}")

    config = ConsumerConfig(group="email", dlq_stream="orders_dlq", batch_size=500, block_ms=2_000, max_deliveries=3)
    consumer = StreamConsumer(client=client, stream="orders", config=config, handler=handle, dlq_handler=on_dlq)
    consuming = asyncio.create_task(consumer.run())
    await done.wait()
    consuming.cancel()
    await asyncio.wait({consuming}, timeout=10)
    await client.close()
    clock.tell()


if __name__ == "__main__":
    asyncio.run(main())
