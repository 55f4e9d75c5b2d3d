"""A projection under random steps: owners that freeze and wake, commits sent twice and late, rebuilds, rollbacks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from decimal import Decimal
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamlib.event import Event
from streamlib.message import entry_order
from streamlib.metrics.worker import WorkerMetrics
from streamlib.ops.dropping import drop
from streamlib.ops.views import View
from streamlib.redisio import generations, ownership, registry, retention
from streamlib.redisio.commits import Verdict
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.indexes import ViewKeys
from streamlib.redisio.large_entries import Room
from streamlib.redisio.view_state import read_entries, view_head
from streamlib.settings import LimitSettings, RetentionSettings
from streamlib.worker.applying import OK, Applier
from streamlib.worker.folding import Folder
from streamlib.worker.preparing import Preparer, RawEntry, Stop
from streamlib.worker.seen import seen_before
from tests.helpers.index_entries import entries as index_entries
from tests.helpers.oracle import assert_no_stray_keys
from tests.helpers.projecting import TOPIC, VIEW, Closed, Moved, Noted, Opened, Rig
from tests.properties.running import Place, Resending, chosen, picks
from tests.properties.view_model import Entry, Owner, ViewModel, fold

T = TypeVar("T")

WORKERS = ("w1", "w2")
LEASE_MS, WINDOW_MS = 3_600_000, 36_000_000
"""Longer than any example runs: leases end when a rule says so."""
METRICS = WorkerMetrics().group(TOPIC, VIEW)

accounts = st.sampled_from("ab")
amounts = st.sampled_from([Decimal("0.10"), Decimal(-7), Decimal("1e30")])
events = st.one_of(
    st.builds(Opened, account=accounts, owner=st.sampled_from(["x", "y"])),
    st.builds(Opened, account=accounts, owner=st.just("x")),
    st.builds(Moved, account=accounts, amount=amounts),
    st.builds(Moved, account=accounts, amount=amounts),
    st.builds(Closed, account=accounts),
    st.builds(Noted, account=accounts, text=st.just("")),
    st.none(),
)
published = st.lists(st.tuples(events, st.one_of(st.just(-1), st.just(-1), picks)), min_size=1, max_size=5)
"""Events, None for what nobody can read, each with which earlier one it is a copy of; -1 for none."""

reads = st.lists(st.integers(1, 4), min_size=1, max_size=3)


class Projector:
    """What a process believes to own: the partition for one generation, in one epoch."""

    def __init__(self, worker: str, generation: int, epoch: int, applier: Applier) -> None:
        self.worker = worker
        self.generation = generation
        self.epoch = epoch
        self.applier = applier


class ViewMachine(RuleBasedStateMachine):
    """Rules take a step on the server and in the model; what the server answers must be what the model says."""

    place: ClassVar[Place]
    met: ClassVar[Counter[str]]
    """How often commits ended in each way."""

    @initialize(first=published)
    def begin(self, first: list[tuple[Event | None, int]]) -> None:
        self.runner = asyncio.Runner()
        door, client = self.place.open()
        self.client: Any = client
        self.door, self.resending = Resending.before(door)
        self.rig = Rig("redis://nowhere", door=self.door)
        self.model = ViewModel()
        self.projectors: list[Projector] = []
        self.run(self._declare())
        self.publish(first)

    async def _declare(self) -> None:
        await registry.declare_topic(self.door, self.rig.keys, self.rig.topic)
        await generations.declare_view(self.door, self.rig.keys, TOPIC, VIEW)
        await self._declare_group(1)

    async def _declare_group(self, generation: int) -> None:
        view, group = self.rig.view, self.keys(generation).group
        await registry.declare_group(self.door, self.rig.keys, self.rig.topic, group, "projection", view.type_names)

    def run(self, work: Coroutine[Any, Any, T], *, twice: bool = False) -> T:
        self.resending.twice = twice
        try:
            return self.runner.run(work)
        finally:
            self.resending.twice = False

    def keys(self, generation: int) -> ViewKeys:
        return ViewKeys(self.rig.keys.stream(TOPIC, 0, 1), VIEW, generation)

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            try:
                assert_no_stray_keys(self.client)
            finally:
                self.runner.run(self.door.close())
                self.client.close()
                self.runner.close()

    @rule(new=published)
    def publish(self, new: list[tuple[Event | None, int]]) -> None:
        for event, of in new:
            copied = chosen(self.model.log, [of])[0] if of >= 0 and self.model.log else None
            event, event_id = (copied.event, copied.event_id) if copied else (event, f"e{len(self.model.log)}")
            if event is None:
                broken = {"id": event_id, "type": "Moved", "v": "1", "key": "a", "data": "{"}
                entry_id = self.client.xadd(TOPIC, broken).decode()
            else:
                entry_id = self.rig.publish(self.client, event, event_id).entry_id
            self.model.log.append(Entry(entry_id, event_id, event))

    # -- owners -------------------------------------------------------------------------------------------------------

    @rule(worker=st.sampled_from(WORKERS), pick=picks, ends=st.booleans(), twice=st.booleans())
    def take(self, worker: str, pick: int, ends: bool, twice: bool) -> None:
        """Become the owner, unless the lease of another one holds; it may just have ended, for its owner is frozen."""
        generation = chosen(sorted(self.model.checkpoints), [pick])[0]
        if ends:
            self._end_lease(generation)
        self._take(worker, generation, twice=twice)

    @rule(worker=st.sampled_from(WORKERS), pick=picks, reads=reads)
    def takes_over_and_projects(self, worker: str, pick: int, reads: list[int]) -> None:
        """As when the one before has hung for longer than its lease."""
        generation = chosen(sorted(self.model.checkpoints), [pick])[0]
        self._end_lease(generation)
        self._take(worker, generation, twice=False)
        for one in [one for one in self.projectors if (one.worker, one.generation) == (worker, generation)]:
            self._project(one, reads, more=False, twice=False)

    def _take(self, worker: str, generation: int, *, twice: bool) -> None:
        if generation == self.model.building and self.model.trimmed:
            return  # a rebuild does not go on with a stream that has lost something
        owner, key = self.model.owners[generation], self.keys(generation).stream.owner(self.keys(generation).group)
        lease = self.run(ownership.take(self.door, key, worker, LEASE_MS), twice=twice)
        assert lease.ours == (owner.ended or owner.worker == worker)
        if not lease.ours:
            assert lease.epoch == owner.epoch
            return
        assert (lease.epoch > owner.epoch) if owner.ended else (lease.epoch == owner.epoch)
        self.model.owners[generation] = Owner(worker, lease.epoch, ended=False)
        applier = self.run(self._applier(worker, generation, lease.epoch))
        self.projectors = [one for one in self.projectors if (one.worker, one.generation) != (worker, generation)]
        self.projectors.append(Projector(worker, generation, lease.epoch, applier))

    async def _applier(self, worker: str, generation: int, epoch: int) -> Applier:
        keys, view, seen = self.keys(generation), self.rig.view, None
        checkpoint = (await view_head(self.door, keys)).checkpoint
        if generation == self.model.building:
            seen = await seen_before(self.door, view.topic.codec, TOPIC, checkpoint, WINDOW_MS)
        return Applier(
            Preparer(view, 0, LimitSettings().payload_bytes), Folder(view, keys, worker, seen), self.door, METRICS,
            owner=worker, epoch=epoch, window_ms=WINDOW_MS, checkpoint=checkpoint, log_fields={},
        )  # fmt: skip

    def _end_lease(self, generation: int) -> None:
        owner, keys = self.model.owners[generation], self.keys(generation)
        if not owner.ended:
            self.client.hset(keys.stream.owner(keys.group), "deadline", "1")
        self.model.owners[generation] = Owner(owner.worker, owner.epoch, ended=True)

    @precondition(lambda self: self.projectors)
    @rule(pick=picks)
    def crash(self, pick: int) -> None:
        self.projectors.remove(chosen(self.projectors, [pick])[0])

    # -- folding ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.projectors)
    @rule(pick=picks, reads=reads, more=st.booleans(), twice=st.booleans())
    def project(self, pick: int, reads: list[int], more: bool, twice: bool) -> None:
        """Fold the entries of some reads, each upon those before; a stale owner writes nothing and gives up."""
        self._project(chosen(self.projectors, [pick])[0], reads, more=more, twice=twice)

    def _project(self, one: Projector, reads: list[int], *, more: bool, twice: bool) -> None:
        behind = [entry for entry in self.model.held if entry.order > entry_order(one.applier.checkpoint)]
        after = behind[: sum(reads)][-1].id if behind else one.applier.checkpoint
        owner = self.model.owners.get(one.generation, Owner())
        owns = (owner.worker, owner.epoch) == (one.worker, one.epoch)
        owns = owns and self.model.checkpoints[one.generation] == one.applier.checkpoint
        result = self.run(_projected(one.applier, self.door, reads, more), twice=twice)
        assert not isinstance(result, Stop)
        self.met[result.verdict.name if behind else "nothing new"] += 1
        if owns or not behind:
            assert result == OK
            assert one.applier.checkpoint == after
            if owns:
                self.model.checkpoints[one.generation] = after
        else:
            assert result.verdict is Verdict.FENCED
            self.projectors.remove(one)

    @precondition(lambda self: self.resending.sent)
    @rule(pick=picks)
    def an_old_commit_arrives(self, pick: int) -> None:
        """However late: nothing changes, which is compared after this step as after any."""
        command = chosen(self.resending.sent, [pick])[0]
        self.run(self.door.execute(*command))

    # -- generations --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.building or self.model.may_build)
    @rule(reads=reads, more=st.booleans())
    def rebuild(self, reads: list[int], more: bool) -> None:
        """Begin, or go on, as one process would that nothing disturbs."""
        if not self.model.building:
            self.run(self._change("build", twice=False))
        generation = self.model.building
        self._take("w1", generation, twice=False)
        for one in [one for one in self.projectors if (one.worker, one.generation) == ("w1", generation)]:
            self._project(one, reads, more=more, twice=False)

    @rule(pick=picks, twice=st.booleans())
    def change_generations(self, pick: int, twice: bool) -> None:
        """Any of the deeds that are possible now; each is told to readers and workers by the register of views."""
        model = self.model
        deeds = {
            "build": model.may_build,
            "switch": model.may_follow(model.building),
            "roll back": model.may_follow(model.kept),
            "drop": bool(model.kept or model.building),
        }
        for deed in chosen([deed for deed, possible in deeds.items() if possible], [pick]):
            self.run(self._change(deed, twice=twice))

    async def _change(self, deed: str, *, twice: bool) -> None:
        model, name, keys = self.model, generations.ViewName(TOPIC, VIEW), self.rig.keys
        now = await generations.standing(self.door, keys, TOPIC, VIEW)
        self.resending.twice = twice
        if deed == "build":
            model.begin()
            await generations.declare_view(self.door, keys, TOPIC, VIEW)
            assert await generations.begin(self.door, keys, name, now.live, model.building, "f")
            await self._declare_group(model.building)
        elif deed == "switch":
            assert await generations.switch(self.door, keys, name, now)
            model.switch()
        elif deed == "roll back":
            assert await generations.swap(self.door, keys, name, now)
            model.swap()
        else:  # whoever folds it meanwhile finds out by its next commit
            view = View(projection=self.rig.view, redis=self.door, keys=keys, settings=self.rig.settings)
            await drop(view, now, model.kept or model.building)
            model.drop(model.kept or model.building)

    @precondition(lambda self: len(self.model.held) > 3)
    @rule(max_len=st.integers(1, 6), twice=st.booleans())
    def trim(self, max_len: int, twice: bool) -> None:
        settings = RetentionSettings(max_len=max_len, max_age_s=0)
        self.run(retention.trim_once(self.door, self.rig.keys, self.rig.topic, settings), twice=twice)
        self.model.trim(max_len)

    # -- after every step ---------------------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        """The stream, and of each generation rows, indexes, dead letters and position, are as the model says."""
        if not hasattr(self, "rig"):
            return
        assert [entry_id.decode() for entry_id, _ in self.client.xrange(TOPIC)] == [one.id for one in self.model.held]
        now = self.run(generations.standing(self.door, self.rig.keys, TOPIC, VIEW))
        assert (now.live, now.kept, now.building) == (self.model.live, self.model.kept, self.model.building)
        for generation in range(1, self.model.newest + 1):
            self._check(generation)

    def _check(self, generation: int) -> None:
        keys = self.keys(generation)
        found = {key.decode() for key in self.client.scan_iter(match=f"{{*}}:view:{VIEW}:{generation}*", count=10_000)}
        if generation not in self.model.checkpoints:
            assert not found, "a generation that was deleted has keys"
            return
        checkpoint = self.model.checkpoints[generation]
        wanted = fold(self.model.log, checkpoint)
        head = self.client.hgetall(keys.head)
        assert head.get(b"checkpoint", b"0-0").decode() == checkpoint
        assert int(head.get(b"rows", 0)) == len(wanted.rows)
        codec = self.rig.view.codec
        rows = {row_id: self.client.hgetall(keys.row(row_id)) for row_id in wanted.rows}
        assert {row_id: codec.read(codec.raws(row), row_id) for row_id, row in rows.items()} == wanted.rows
        indexes: dict[str, dict[bytes, float]] = {}
        for row_id, row in wanted.rows.items():
            for key, (member, score) in index_entries(self.rig.view.indexes, keys, row_id, row).items():
                indexes.setdefault(key, {})[member] = score
        assert {key: dict(self.client.zrange(key, 0, -1, withscores=True)) for key in indexes} == indexes
        heads = {keys.head} if head else set()
        assert found == heads | {keys.row(row_id) for row_id in wanted.rows} | set(indexes)
        letters = self.client.xrange(keys.stream.dead(keys.group))
        assert [fields[b"dl-entry"].decode() for _, fields in letters] == wanted.dead


async def _projected(applier: Applier, door: RedisDoor, reads: list[int], more: bool) -> Any:
    last = applier.checkpoint
    for count in reads:
        raw = [RawEntry.of(*entry) for entry in await read_entries(door, TOPIC, last, count, None, Room())]
        if not raw:
            break
        prepared, stop = applier.preparer.prepare(raw)
        assert stop is None
        result = await applier.follow(prepared, more)
        if result != OK:
            return result
        last = raw[-1].id
    return await applier.finish()
