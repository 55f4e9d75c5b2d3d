"""What endangers a topic's streams: an entry whose id lies in the future, behind which all ids do."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec import Struct

from streamlib.keys import Keys
from streamlib.message import entry_order, entry_time_ms
from streamlib.ops.findings import Diagnosis
from streamlib.ops.places import partitions_of
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.registry import last_id

AHEAD_MS = 3_600_000
_LAST = (1 << 64) - 1


class StreamFacts(Struct, frozen=True):
    """A partition's stream, the id of the last entry ever added, and the server's clock, ms."""

    stream: str
    last_id: str
    now_ms: int


async def look_at_streams(redis: RedisDoor, keys: Keys, topic: str) -> list[StreamFacts]:
    """Every partition of a topic. Raises what the client raises."""
    now_ms = int((await redis.execute("TIME"))[0]) * 1000
    places = await partitions_of(redis, keys, topic)
    return [StreamFacts(one.stream, await last_id(redis, one.stream), now_ms) for one in places]


def check_stream(facts: StreamFacts) -> list[Diagnosis]:
    """Ids only grow: behind one of the future every later one lies there too."""
    if entry_time_ms(facts.last_id) <= facts.now_ms + AHEAD_MS:
        return []
    full = entry_order(facts.last_id) == (_LAST, _LAST)
    goes_on = "no id is left: every publish is refused" if full else "events flow, under ids of that time"
    return [
        Diagnosis(
            code="ids_from_the_future",
            severity="danger" if full else "warning",
            where=f"stream {facts.stream}",
            what=f"its last id is {facts.last_id}, of {_when(facts.last_id)}; the server's clock is far behind that",
            why=f"{goes_on}; ages read 0, retention.max_age_s frees nothing behind that id until then, and a range by "
            "time does not find these events",
            advice="find the program that adds entries under ids of its own (XADD * leaves it to the server); bound "
            "the topic by retention.max_len, or go on in a new one (app.rekey copies), for ids never go back",
        )
    ]


def _when(entry_id: str) -> str:
    try:
        return f"{datetime.fromtimestamp(entry_time_ms(entry_id) / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return "a year above 9999"
