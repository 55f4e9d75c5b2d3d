"""Publishes at a steady pace: `python -m benchmarks.pacer URL EVENTS PER_SECOND [watch]`.

Each event carries the moment at which it was sent, by the clock that all processes of a machine share. With `watch` it
also reads the server's MONITOR and prints, as a JSON list, the ms from each XADD to its XACK by the server's clock.
"""

import json
import sys
import threading
import time
from typing import Any

import redis

from benchmarks.payload import STREAM
from streamlib.message import new_event_id

QUIET_S = 30.0


def main(url: str, events: str, per_second: str, how: str = "") -> None:
    count, pause_s = int(events), 1 / float(per_second)
    client = redis.Redis.from_url(url, protocol=2)
    watcher = Watcher(url, count) if how == "watch" else None
    ids, started_s = [], time.monotonic()
    for number in range(count):
        left_s = started_s + number * pause_s - time.monotonic()
        if left_s > 0:
            time.sleep(left_s)
        event_id, sent_ns = new_event_id(), time.monotonic_ns()
        data = f'{{"sent_ns":{sent_ns}}}'
        added: Any = client.xadd(STREAM, {"id": event_id, "type": "Timed", "v": 1, "key": event_id, "data": data})
        ids.append(added.decode())
    if watcher is not None:
        print(json.dumps(watcher.latencies_ms(ids)))


class Watcher:
    """Notes from MONITOR when entries were added and when they were acknowledged."""

    def __init__(self, url: str, count: int) -> None:
        self._count = count
        self._added_s: list[float] = []
        self._acked_s: dict[str, float] = {}
        self._watching = threading.Event()
        self._client = redis.Redis.from_url(url, protocol=2, socket_timeout=QUIET_S)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._watching.wait()

    def latencies_ms(self, ids: list[str]) -> list[float]:
        """From each XADD to its XACK; `ids` are the entries in the order in which they were added."""
        self._thread.join(QUIET_S)
        if len(self._acked_s) < self._count:
            raise RuntimeError(f"only {len(self._acked_s)} of {self._count} entries were acknowledged")
        return [(self._acked_s[one] - at_s) * 1000 for one, at_s in zip(ids, self._added_s, strict=True)]

    def _watch(self) -> None:
        with self._client.monitor() as monitor:  # type: ignore[no-untyped-call]
            self._watching.set()
            while len(self._acked_s) < self._count:
                told = monitor.next_command()
                words = told["command"].split(" ")
                if words[0] == "XADD" and words[1] == STREAM:
                    self._added_s.append(told["time"])
                elif words[0] == "XACK" and words[1] == STREAM:
                    self._acked_s |= dict.fromkeys(words[3:], told["time"])


if __name__ == "__main__":
    main(*sys.argv[1:])
