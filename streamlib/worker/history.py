"""Folds what a topic's streams do not hold any more, from another place, before the streams are gone on with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from msgspec import Struct

from streamlib.codec import Fields
from streamlib.errors import StreamlibError
from streamlib.message import entry_order
from streamlib.redisio.commits import Verdict
from streamlib.worker.applying import Applier
from streamlib.worker.preparing import RawEntry, Stop

AT_ONCE = 500


class Past(Struct, frozen=True):
    """One event of the past: its entry, and the row it must be of ("" for any)."""

    entry_id: str
    fields: Fields
    row_id: str = ""


class End(Struct, frozen=True):
    """The id up to which the history goes, and how many entries had been added to the stream by then."""

    entry_id: str
    added: int


class History(Protocol):
    """Where the past comes from: aggregates, or a file. `told` names it in a sentence."""

    told: str

    async def end(self, partition: int) -> End:
        """Where the stream goes on; asked before `events`, once."""
        ...

    def events(self, partition: int, end: End) -> AsyncIterator[list[Past]]:
        """The events of a partition up to there, AT_ONCE at most at a time; those of one row in their order."""
        ...


def is_half(checkpoint: str) -> bool:
    """Whether a history was begun and not folded to its end: that cannot be gone on with."""
    ms, number = entry_order(checkpoint)
    return ms == 0 and number > 0


async def fold_history(history: History, partition: int, applier: Applier) -> None:
    """Fold a partition's history from its beginning, and go to where the stream goes on.

    Meanwhile the checkpoints are numbers of events ("0-1", "0-2"), before all entries of the stream. Raises
    StreamlibError where it cannot be folded, and what the client raises.
    """
    end, done = await history.end(partition), 0
    async for batch in history.events(partition, end):
        entries = [RawEntry.of(one.entry_id, one.fields, f"0-{done + n}") for n, one in enumerate(batch, start=1)]
        prepared, stop = applier.preparer.prepare(entries)
        if stop is not None:
            raise StreamlibError(f"{history.told}: {stop.failure.error}; rebuild with the newer code")
        for past, one in zip(batch, prepared, strict=True):
            if past.row_id and one.event is not None and one.row_id != past.row_id:
                raise StreamlibError(
                    f"{history.told}: an event of {past.row_id!r} changes row {one.row_id!r}; only a view that is "
                    "keyed by the aggregate's id can be made from aggregates: their order among each other is not kept"
                )
        result = await applier.apply(prepared)
        if isinstance(result, Stop):
            raise StreamlibError(f"{history.told}: {result.failure.error}; the view halts there")
        if result.verdict is not Verdict.OK:
            raise StreamlibError(f"{history.told}: folding was cut off ({result.verdict.value})")
        done += len(batch)
        if batch[0].row_id and applier.folder.seen is not None:
            applier.folder.seen.forget()  # aggregates have no copies, and their events no common order in time
    await applier.jump(end.entry_id, end.added)
