"""`python -m workers.flights.jsonl [LIMIT]` prints flight events as lines for `streamlib publish ... -`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import msgspec

from streamlib.event import event_type
from workers.flights.records import read_events


def lines(limit: int | None = None) -> Iterator[bytes]:
    """One JSON object for each event, `{"type", "data", "id"}` and a line feed; at most `limit`."""
    encode = msgspec.json.Encoder().encode
    for event_id, event in read_events(limit=limit):
        yield encode({"type": event_type(type(event)), "data": event, "id": event_id}) + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.writelines(lines(int(sys.argv[1]) if len(sys.argv) > 1 else None))
