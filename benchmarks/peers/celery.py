"""Celery: one prefork worker with one process, results ignored."""

import os
import subprocess
import sys
from typing import Any

from celery import Celery

from benchmarks.peers.common import ClockElsewhere, Given, order, wait_for_marks

app = Celery("bench", broker=os.environ.get("BENCH_URL", ""), set_as_current=False)
clock: ClockElsewhere | None = None


@app.task(name="handle", ignore_result=True)
def handle(event: dict[str, Any]) -> None:
    global clock
    if clock is None:  # once in the process that was forked
        marks = os.environ["BENCH_MARKS"].split()
        clock = ClockElsewhere(os.environ["BENCH_URL"], tuple(map(int, marks)))
    clock.tick(event["order_id"])


def main() -> None:
    given = Given()
    app.conf.broker_url = given.url
    for number in range(given.total):
        handle.delay(order(number))
    env = os.environ | {"BENCH_URL": given.url, "BENCH_MARKS": " ".join(map(str, given.marks))}
    words = ["-m", "celery", "-A", "benchmarks.peers.celery:app", "worker", "-c", "1", "-l", "ERROR"]
    worker = subprocess.Popen([sys.executable, *words], env=env, stdout=subprocess.DEVNULL)
    try:
        wait_for_marks(given)
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    main()
