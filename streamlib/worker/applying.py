"""Folds entries and commits what changed, batch by batch; event by event when a batch cannot be written."""

from __future__ import annotations

import logging
import time
from typing import Any

from streamlib.errors import RedisError, StreamlibError
from streamlib.message import entry_time_ms
from streamlib.metrics.worker import GroupMetrics
from streamlib.redisio.commits import Answer, Batch, Verdict, commit, load
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.dead_letter import Failure
from streamlib.redisio.indexes import ViewKeys
from streamlib.redisio.view_state import extent_of
from streamlib.worker.folding import Folded, Folder, Prepared, Stop

log = logging.getLogger(__name__)


class Applier:
    """Brings one partition's view forward from `checkpoint` while owner and epoch hold."""

    def __init__(
        self,
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
        self.folder = folder
        self.checkpoint = checkpoint
        self._redis = redis
        self._metrics = metrics
        self._owner = owner
        self._epoch = epoch
        self._window_ms = window_ms
        self._log_fields = log_fields
        self._group = folder.keys.group

    async def apply(self, prepared: list[Prepared]) -> Answer | Stop:
        """Commit entries that follow the checkpoint. OK when all are in; Stop when a failure halts the view.

        Raises RedisError when a key that every commit needs holds another type.
        """
        while prepared:
            folded, answer = await self._fold_and_commit(prepared)
            if answer.verdict is Verdict.WRONG_TYPE:
                self.folder.forget()
                self._refuse_shared(answer.detail)
                if len(prepared) > 1:
                    return await self._one_by_one(prepared)
                prepared[0].failure = _wrong_type(answer.detail)
                continue
            if answer.verdict is not Verdict.OK:
                return answer
            if folded.consumed:
                self._committed(folded, prepared, answer)
            if folded.halted is not None:
                return folded.halted
            prepared = prepared[folded.consumed :]
        return Answer(Verdict.OK)

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
        self.checkpoint = entry_id

    async def _read(self) -> int:
        """How many entries the script will count from."""
        known = await self._redis.execute("HGET", self.folder.keys.head, "read")
        extent = await extent_of(self._redis, self.folder.keys.stream.stream)
        return int(known) if known is not None else extent.added - extent.length

    async def _one_by_one(self, prepared: list[Prepared]) -> Answer | Stop:
        for one in prepared:
            result = await self.apply([one])
            if not (isinstance(result, Answer) and result.verdict is Verdict.OK):
                return result
        return Answer(Verdict.OK)

    async def _fold_and_commit(self, prepared: list[Prepared]) -> tuple[Folded, Answer]:
        folder = self.folder
        events, rows = folder.needs(prepared)
        loaded = await self._redis.persist(
            lambda: load(self._redis, folder.keys, self._group, events, rows), give_up_s=None
        )
        folded = folder.fold(prepared, loaded, self.checkpoint)
        if not folded.consumed:
            return folded, Answer(Verdict.OK)
        return folded, await self._commit(folder.keys, folded.batch)

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

    def _committed(self, folded: Folded, prepared: list[Prepared], answer: Answer) -> None:
        self.folder.accept(folded)
        self.checkpoint = folded.batch.new
        metrics, name, now_s = self._metrics, self.folder.projection.name, time.time()
        for outcome, times in (
            ("ok", folded.folded),
            ("skipped", folded.skipped),
            ("dead", len(folded.dead)),
            ("duplicate", folded.duplicates),
        ):
            for _ in range(times):
                metrics.processed(name, outcome, None)
        for failure in folded.dead:
            metrics.handler_error(name, failure.error_type)
            metrics.dead_letter(name, failure.reason)
            log.error("event_dead_lettered", extra=self._log_fields | _shown(failure))
        if folded.duplicates:
            metrics.duplicate(folded.duplicates)
        for one in prepared[: folded.consumed]:
            metrics.end_to_end(max(now_s - entry_time_ms(one.entry.id) / 1000, 0.0))
        if answer.detail:
            log.warning("group_position_not_moved", extra=self._log_fields | {"error": answer.detail})

    def _refuse_shared(self, key: str) -> None:
        keys = self.folder.keys
        stream = keys.stream
        if key in (stream.stream, stream.owner(self._group), stream.dead(self._group), keys.head):
            raise RedisError(f"{key} holds another type; rename or remove that key")


def _shown(failure: Failure) -> dict[str, str]:
    return {"reason": failure.reason, "error": failure.error}


def _wrong_type(key: str) -> Failure:
    return Failure("schema", f"{key} holds another type; rename or remove that key", "", "WrongKeyType")
