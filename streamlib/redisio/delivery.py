"""One entry as a worker received it: from the topic's stream, or from its group's stream of returning events."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.errors import Fenced
from streamlib.keys import StreamKeys

How = Literal["new", "reclaimed", "retry"]


class Delivery(Struct, kw_only=True, eq=False, gc=False):
    """An entry in the pending list of this worker's consumer.

    `again` tells the two streams apart, `entry_id` is the entry's id in the one it was read from, `origin_id` its id
    in S; `event_id` is the idempotency key's; `attempts` are the runs spent before, `replays` how often it came back
    from the dead letters; `parked_ms` is when it was first parked (0: never). `epoch` is the one in which this worker
    owns the partition, 0 in groups without owners; `key` is the event's ("" where it has none, or where it could not be
    read).
    """

    keys: StreamKeys
    partition: int
    again: bool
    entry_id: str
    origin_id: str
    event_id: str
    fields: Fields
    how: How
    attempts: int = 0
    replays: int = 0
    parked_ms: int = 0
    epoch: int = 0
    key: str = ""
    size: int = 0
    """Bytes of its fields. Counted here, as `ref` is made here, for both are asked for many times."""
    ref: str = ""
    """The entry's name in tokens: ids of the two streams may be equal, refs are not."""

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.fields))
        self.ref = "a" + self.entry_id if self.again else self.entry_id


def fenced(keys: StreamKeys, group: str, epoch: int) -> Fenced:
    """The error of whoever lost a partition: nothing was read or written there."""
    return Fenced(f"group {group!r} at {keys.stream}: epoch {epoch} is over, the partition has another owner")
