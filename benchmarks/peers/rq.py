"""RQ: one worker, which forks for every job."""

import subprocess
import sys
import time
from typing import Any

import redis
from rq import Queue

from benchmarks.peers.common import PATIENCE_S, Given, order, tell


def handle(event: dict[str, Any]) -> None: ...


def main() -> None:
    given = Given()
    client = redis.Redis.from_url(given.url)
    queue = Queue(connection=client)
    for number in range(given.total):
        queue.enqueue("benchmarks.peers.rq.handle", order(number))
    worker = subprocess.Popen([sys.executable, "-m", "rq.cli", "worker", "--quiet", "--burst", "--url", given.url])
    try:
        at_s = [_when_left(queue, given.total - mark) for mark in given.marks[:2]]
        worker.wait(PATIENCE_S)
    finally:
        worker.terminate()
        worker.wait()
    finished = queue.finished_job_registry.count
    tell(given, at_s[1] - at_s[0], finished, {})


def _when_left(queue: Queue, count: int) -> float:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if queue.count <= count:
            return time.monotonic()
        time.sleep(0.005)
    raise RuntimeError(f"{queue.count} jobs are left")


if __name__ == "__main__":
    main()
