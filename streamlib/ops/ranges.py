"""A range of a topic: what was asked for, whether it is still held, and its entries, sorted out batch by batch."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from msgspec import Struct

from streamlib.codec import Fields, NativeCodec
from streamlib.errors import DecodeError, NotFound, Refused, StreamlibError
from streamlib.message import Message, entry_order
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.replays import (
    NO_STREAM,
    Batch,
    Candidate,
    History,
    Range,
    Totals,
    begins_with,
    history,
    read_page,
)

BEGIN, FIRST = "begin", "first"
"""From the first event that ever was, or from the first that is still held, whatever was before it."""

_ZERO = "0-0"
_PAGE = 64
_MAX_PAGE = 1_000
_MAX_BYTES = 1024 * 1024
_REMEMBERED = 100_000
"""Event ids among which copies are found; those that a producer made lie close to one another."""

_codec = NativeCodec()


class Asked(Struct, frozen=True, kw_only=True):
    """What of a topic is meant. `start` is BEGIN, FIRST or an entry id, `end` an entry id, None for what is there now.

    Without `types` or `keys` all are meant. `told` is how it was put: relative times, too, mean the same range again.
    """

    topic: str
    start: str
    end: str | None = None
    types: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    told: str = ""

    def fits(self, message: Message) -> bool:
        return (not self.types or message.type in self.types) and (not self.keys or message.key in self.keys)


async def ranges_of(
    redis: RedisDoor, asked: Asked, streams: Sequence[str], group: str | None
) -> tuple[list[Range], list[str]]:
    """The range on each partition, and notes about what it lacks. What a group was not given yet is told apart.

    The end is fixed now: what comes later is not meant. Raises Refused where entries of the range may be gone, NotFound
    where the group is, and what the client raises.
    """
    found, gone, notes = list[Range](), list[str](), list[str]()
    for stream in streams:
        held = await history(redis, stream, group)
        if held is None:
            found.append(Range(_ZERO, _ZERO, _ZERO, NO_STREAM))
            continue
        if group is not None and held.delivered is None:
            raise NotFound(f"{stream} has lost its group {group!r}; a worker that runs it makes it again")
        start = _ZERO if asked.start in (BEGIN, FIRST) else asked.start
        end = held.last if asked.end is None else min(held.last, asked.end, key=entry_order)
        if _lacks_beginning(held, start):
            gone.append(f"{stream} begins with {held.first}" if held.first else f"{stream} holds nothing any more")
        if held.first and max(entry_order(start), entry_order(held.first)) <= entry_order(held.deleted):
            notes.append(f"entries of {stream} up to {held.deleted} were deleted by hand; some may be missing here")
        found.append(Range(start, end, held.delivered if held.delivered is not None else end, held.removed))
    if gone and asked.start == FIRST:
        notes.append(f"what was before is gone: {'; '.join(gone)}")
    elif gone:
        raise Refused(
            f"the range begins before what topic {asked.topic!r} still holds: {'; '.join(gone)}; nothing was replayed. "
            "Begin with a later entry, or with --from first: what is left on each partition"
        )
    return found, notes


def _lacks_beginning(held: History, start: str) -> bool:
    """Redis tells how many entries are gone, not which: if any is, all before the first one may have been there."""
    if not held.removed:
        return False
    return entry_order(start) < (entry_order(held.first) if held.first else _after(held.last))


def _after(entry_id: str) -> tuple[int, int]:
    ms, sequence = entry_order(entry_id)
    return ms, sequence + 1


class Scan:
    """Reads the range of one partition. `position` is the last entry that was sorted out, "" before the first; when
    all are, it is the end of the range."""

    def __init__(self, redis: RedisDoor, stream: str, asked: Asked, of: Range) -> None:
        self.position = ""
        self._redis = redis
        self._stream = stream
        self._asked = asked
        self._range = of
        self._page: deque[tuple[str, Fields]] = deque()
        self._at_end = False
        self._count = _PAGE
        self._seen: dict[str, None] = {}

    def go_to(self, position: str) -> None:
        """Go on behind this entry."""
        self.position = position
        self._at_end = False
        self._page.clear()
        self._seen.clear()

    async def next(self, most: int) -> Batch | None:
        """The next entries, with up to `most` that may be replayed; None at the end.

        Raises StreamlibError when entries that come next were removed meanwhile, and what the client raises; it can be
        called again then.
        """
        if not self._page and not self._at_end:
            await self._read()
        if not self._page:
            return None
        events, left_out, size = list[Candidate](), Counter[str](), 0
        while self._page and len(events) < most and size < _MAX_BYTES:
            entry_id, fields = self._page.popleft()
            found = self._sort_out(entry_id, fields)
            if isinstance(found, str):
                left_out[found] += 1
            else:
                events.append(Candidate(entry_id, found, fields))
                size += _size(fields)
            self.position = entry_id
        if self._at_end and not self._page:
            self.position = self._range.end  # nothing more is to be read here, whatever is removed from now on
        return Batch(self.position, events, Totals(**left_out))

    def _sort_out(self, entry_id: str, fields: Fields) -> Message | str:
        """The envelope of an event that may be replayed, or as what its entry is left out."""
        try:
            message = _codec.read(entry_id, fields)
        except DecodeError:
            return "foreign"
        if not self._asked.fits(message):
            return "filtered"
        if entry_order(entry_id) > entry_order(self._range.delivered):
            return "not_delivered"
        if message.id in self._seen:
            return "copies"
        self._seen[message.id] = None
        if len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return message

    async def _read(self) -> None:
        """Pages grow as long as their entries are small."""
        start = f"({self.position}" if self.position else self._range.start
        count = self._count
        found = await read_page(self._redis, self._stream, start, self._range.end, count)
        await self._check_gap(found)
        size = sum(_size(fields) for _, fields in found)
        self._count = min(count * 2, _MAX_PAGE) if size < _MAX_BYTES else max(count // 4, 4)
        self._page.extend(found)
        self._at_end = len(found) < count

    async def _check_gap(self, found: Sequence[tuple[str, Fields]]) -> None:
        """Retention does not know of replays: has it removed what comes behind our position before we have read it?

        Streams are trimmed from their beginning: if what we read is behind that now, we were first.
        """
        if self.position == self._range.end:
            return
        first, removed = await begins_with(self._redis, self._stream)
        begun = self.position or (self._asked.start != FIRST and self._range.start)
        if self._range.removed in (removed, NO_STREAM) or not begun:
            return
        left = entry_order(first) if first else _after(self._range.end)
        if entry_order(begun) < left and not (found and entry_order(found[0][0]) < left):
            raise StreamlibError(
                f"{self._stream} begins with {first or 'nothing'} now: entries behind {begun} were removed before they "
                "were read; keep more of the topic (retention.max_age_s, retention.max_len), and go on with what is "
                "left: --from first --anew"
            )


def _size(fields: Fields) -> int:
    return sum(map(len, fields))
