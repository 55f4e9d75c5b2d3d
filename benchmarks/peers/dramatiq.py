"""Dramatiq: one worker process with eight threads, without a result backend."""

import threading
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers.common import Clock, Given, order


def main() -> None:
    given, done = Given(), threading.Event()
    clock, broker = Clock(given, done.set), RedisBroker(url=given.url)
    dramatiq.set_broker(broker)

    @dramatiq.actor
    def handle(event: dict[str, Any]) -> None:
        clock.tick(event["order_id"])

    for number in range(given.total):
        handle.send(order(number))
    worker = dramatiq.Worker(broker, worker_threads=8)
    worker.start()
    done.wait()
    worker.stop()
    clock.tell()


if __name__ == "__main__":
    main()
