"""tarsk-redis: one child process under its Rust supervisor."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tarsk import App

from benchmarks.peers.common import ClockElsewhere, Given, order, wait_for_marks

app = App(broker=os.environ.get("BENCH_URL", sys.argv[1] if len(sys.argv) > 1 else ""))
clock: ClockElsewhere | None = None


@app.task()
def handle(event: dict[str, Any]) -> None:
    global clock
    if clock is None:
        marks = os.environ["BENCH_MARKS"].split()
        clock = ClockElsewhere(os.environ["BENCH_URL"], tuple(map(int, marks)))
    clock.tick(event["order_id"])


def main() -> None:
    given = Given()
    from benchmarks.peers.tarsk import handle as task  # by the name under which the child knows it

    for number in range(given.total):
        task.send(order(number))
    env = os.environ | {"BENCH_URL": given.url, "BENCH_MARKS": " ".join(map(str, given.marks))}
    words = ["worker", "--app", "benchmarks.peers.tarsk:app", "--broker", given.url, "--children", "1"]
    tarsk = str(Path(sys.executable).parent / "tarsk")
    worker = subprocess.Popen([tarsk, *words], env=env | {"PYTHONPATH": os.getcwd()}, stdout=subprocess.DEVNULL)
    try:
        wait_for_marks(given)
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    main()
