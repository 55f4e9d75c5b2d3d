"""Folds entries and commits what changed, batch by batch; in ever smaller ones when a batch cannot be written."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from streamlib.errors import RedisError, StreamlibError
from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.commits import Answer, Batch, Loaded, Verdict, commit, load
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.dead_letter import Failure
from streamlib.redisio.indexes import ViewKeys
from streamlib.redisio.view_state import extent_of
from streamlib.worker.folding import Folded, Folder, Needs
from streamlib.worker.loops import cancel
from streamlib.worker.preparing import Prepared, Preparer, Stop

log = logging.getLogger(__name__)


OK = Answer(Verdict.OK)


class _Begun(Struct, frozen=True):
    """Entries that are folded next: what they need is being loaded. `drops` tells upon what."""

    prepared: Sequence[Prepared]
    needs: Needs
    loading: asyncio.Task[Loaded]
    drops: int


class _UnderWay(Struct, frozen=True):
    """A commit that was sent."""

    folded: Folded
    prepared: Sequence[Prepared]
    committing: asyncio.Task[Answer]


class Applier:
    """Brings one partition's view forward from `checkpoint` while owner and epoch hold.

    While a commit is under way, the next batch is folded upon it, and what the entries after it need is loaded. Under a
    backlog a batch takes what many reads bring: what their events do to one row is written once. Commits are sent one
    after another; one that fails takes with it what was folded upon it.
    """

    def __init__(
        self,
        preparer: Preparer,
        folder: Folder,
        redis: RedisDoor,
        metrics: GroupMetrics,
        *,
        owner: str,
        epoch: int,
        window_ms: int,
        checkpoint: str,
        log_fields: dict[str, Any],
    ) -> None:
        self.preparer = preparer
        self.folder = folder
        self.checkpoint = checkpoint
        self._reached = checkpoint
        self._drops = 0
        self._begun: _Begun | None = None
        self._more = False
        self._gathered: list[Prepared] = []
        self._under_way: _UnderWay | None = None
        self._redis = redis
        self._metrics = metrics
        self._owner = owner
        self._epoch = epoch
        self._window_ms = window_ms
        self._log_fields = log_fields
        self._group = folder.keys.group

    async def apply(self, prepared: Sequence[Prepared]) -> Answer | Stop:
        """Commit entries that follow the checkpoint. OK when all are in; Stop when a failure halts the view.

        Raises RedisError when a key that every commit needs holds another type.
        """
        while prepared:
            begun = self._begin(prepared)
            consumed = self.folder.fold(prepared, begun.needs, await begun.loading)
            self._gathered += prepared[:consumed]
            result = await self._close()
            if _is_ok(result):
                result = await self._end_commit()
            if not _is_ok(result):
                return result
            prepared = prepared[consumed:]
        return OK

    async def follow(self, prepared: Sequence[Prepared], more: bool) -> Answer | Stop:
        """Take these up, which follow those taken up before: ask for what folding them needs, and then fold those, as
        `apply` does, while that is fetched. `more` tells that others follow at once: the batch waits for them.

        Answers how the last commit ended. Anything but OK: what was not committed has to be read again, or never is.
        """
        before, self._begun, self._more = self._begun, self._begin(prepared), more
        await asyncio.sleep(0)  # it is sent, before folding keeps the loop busy
        result = OK if before is None else await self._fold(before)
        if not _is_ok(result) or (more and self.folder.has_room(prepared)):
            return result
        return await self._close()

    async def finish(self) -> Answer | Stop:
        """Fold and commit all that was taken up, and wait for the end of that."""
        begun, self._begun = self._begun, None
        result = OK if begun is None else await self._fold(begun)
        if _is_ok(result):
            result = await self._close()
        return await self._end_commit() if _is_ok(result) else result

    async def may_follow(self, reading: asyncio.Task[Any]) -> bool:
        """Whether more is read before what was taken up can be folded; true where nothing was, or more is to come."""
        if self._begun is None or self._more:
            return True
        await asyncio.wait({reading, self._begun.loading}, return_when=asyncio.FIRST_COMPLETED)
        return reading.done()

    async def close(self) -> None:
        """Let go of what is under way: whether a commit is made is for the next owner to see."""
        if self._begun is not None:
            await cancel(self._begun.loading)
        if self._under_way is not None:
            await cancel(self._under_way.committing)

    async def jump(self, entry_id: str, added: int) -> None:
        """Go on behind this entry, the `added`th of the stream, without folding. Raises StreamlibError when fenced."""
        if entry_id == self.checkpoint:
            return
        keys, read = self.folder.keys, await self._redis.persist(self._read, give_up_s=None)
        batch = Batch(
            old=self.checkpoint, new=entry_id, entries=added - read, marks={}, rows={}, row_delta=0, indexes={},
            inexact=(), dead=(),
        )  # fmt: skip
        answer = await self._commit(keys, batch)
        if answer.verdict is not Verdict.OK:
            why = f"{answer.verdict.value} {answer.detail}"
            raise StreamlibError(f"{keys.head} could not be moved to {entry_id}: {why}")
        self.checkpoint = self._reached = entry_id

    async def _read(self) -> int:
        """How many entries the script will count from."""
        known = await self._redis.execute("HGET", self.folder.keys.head, "read")
        extent = await extent_of(self._redis, self.folder.keys.stream.stream)
        return int(known) if known is not None else extent.added - extent.length

    def _begin(self, prepared: Sequence[Prepared]) -> _Begun:
        folder, needs = self.folder, self.folder.needs(prepared)
        loading = self._redis.persist(
            lambda: load(self._redis, folder.keys, self._group, needs.events, needs.rows), give_up_s=None
        )
        return _Begun(prepared, needs, asyncio.create_task(loading), self._drops)

    async def _fold(self, begun: _Begun) -> Answer | Stop:
        """Fold what was begun into the batch that is open; what finds no place in it is committed behind it."""
        loaded = await begun.loading
        if begun.drops != self._drops:  # what it would be folded upon is not there
            return await self.apply(begun.prepared)
        consumed = self.folder.fold(begun.prepared, begun.needs, loaded)
        self._gathered += begun.prepared[:consumed]
        if consumed == len(begun.prepared):
            return OK
        result = await self._close()
        return await self.apply(begun.prepared[consumed:]) if _is_ok(result) else result

    async def _close(self) -> Answer | Stop:
        """End the batch that is open, wait for the commit before, and start this one; OK when all that is so."""
        prepared, self._gathered, drops = self._gathered, [], self._drops
        folded = self.folder.close(self._reached)
        result = await self._end_commit()
        if folded is None or not _is_ok(result):
            return result
        if drops != self._drops:
            return await self.apply(prepared)
        if prepared:  # from here on others are folded upon it
            self.folder.accept(folded)
            self._reached = folded.batch.new
            self._under_way = _UnderWay(
                folded, prepared, asyncio.create_task(self._commit(self.folder.keys, folded.batch))
            )
        if folded.halted is None:
            return OK
        result = await self._end_commit()
        return folded.halted if _is_ok(result) else result

    async def _end_commit(self) -> Answer | Stop:
        """Wait for the commit that is under way, if any; entries that cannot be written are applied by halves."""
        if self._under_way is None:
            return OK
        folded, prepared = self._under_way.folded, self._under_way.prepared
        answer = await self._under_way.committing
        self._under_way = None
        if answer.verdict is Verdict.OK:
            self._committed(folded, prepared, answer)
            return OK
        self._drop()
        if answer.verdict is not Verdict.WRONG_TYPE:
            return answer
        self._refuse_shared(answer.detail)
        if len(prepared) > 1:
            half = len(prepared) // 2
            result = await self.apply(prepared[:half])
            return await self.apply(prepared[half:]) if _is_ok(result) else result
        prepared[0].failure = _wrong_type(answer.detail)
        return await self.apply(prepared)

    def _drop(self) -> None:
        self.folder.forget()
        self._reached = self.checkpoint
        self._drops += 1

    async def _commit(self, keys: ViewKeys, batch: Batch) -> Answer:
        return await self._redis.persist(
            lambda: commit(
                self._redis,
                keys,
                self._group,
                owner=self._owner,
                epoch=self._epoch,
                window_ms=self._window_ms,
                batch=batch,
            ),
            give_up_s=None,
        )

    def _committed(self, folded: Folded, prepared: Sequence[Prepared], answer: Answer) -> None:
        self.folder.committed(folded)
        self.checkpoint = folded.batch.new
        metrics, name, now_s = self._metrics, self.folder.projection.name, time.time()
        for outcome, times in (
            ("ok", folded.folded),
            ("skipped", folded.skipped),
            ("dead", len(folded.dead)),
            ("duplicate", folded.duplicates),
        ):
            metrics.processed(name, outcome, n=times)
        for failure in folded.dead:
            metrics.handler_error(name, failure.error_type)
            metrics.dead_letter(name, failure.reason)
            log.error("event_dead_lettered", extra=self._log_fields | _shown(failure))
        if folded.duplicates:
            metrics.duplicate(folded.duplicates)
        metrics.end_to_end(*[now_s - one.entry.at_ms / 1000 for one in prepared])
        if answer.detail:
            log.warning("group_position_not_moved", extra=self._log_fields | {"error": answer.detail})

    def _refuse_shared(self, key: str) -> None:
        keys = self.folder.keys
        stream = keys.stream
        if key in (stream.stream, stream.owner(self._group), stream.dead(self._group), keys.head):
            raise RedisError(f"{key} holds another type; rename or remove that key")


def _is_ok(result: Answer | Stop) -> bool:
    return isinstance(result, Answer) and result.verdict is Verdict.OK


def _shown(failure: Failure) -> dict[str, str]:
    return {"reason": failure.reason, "error": failure.error}


def _wrong_type(key: str) -> Failure:
    return Failure("schema", f"{key} holds another type; rename or remove that key", "", "WrongKeyType")
