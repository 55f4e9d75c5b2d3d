"""arq: one worker with ten jobs at once."""

import asyncio
from typing import Any

from arq import create_pool, func
from arq.connections import RedisSettings
from arq.worker import Worker

from benchmarks.peers.common import Clock, Given, order


async def main() -> None:
    given = Given()
    clock, settings = Clock(given, lambda: None), RedisSettings.from_dsn(given.url)

    async def handle(ctx: Any, event: dict[str, Any]) -> None:
        clock.tick(event["order_id"])

    pool = await create_pool(settings)
    for number in range(given.total):
        await pool.enqueue_job("handle", order(number))
    worker = Worker([func(handle, name="handle")], redis_settings=settings, handle_signals=False, burst=True)
    await worker.async_run()  # until nothing is left
    await worker.close()
    await pool.close(close_connection_pool=True)
    clock.tell()


if __name__ == "__main__":
    asyncio.run(main())
