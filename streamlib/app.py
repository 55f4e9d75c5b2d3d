"""The app: the one place where topics, handlers, projections, Redis and the worker are joined."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar, overload

from streamlib.blocking import BlockingApp
from streamlib.codec import Codec, NativeCodec
from streamlib.connected import Connected
from streamlib.errors import DeclarationError, NotFound
from streamlib.event import Command, Event, Registry, event_type, event_version
from streamlib.eventsourcing.aggregate import Aggregate
from streamlib.eventsourcing.command_bus import CommandBus
from streamlib.eventsourcing.command_queue import Ticket, group_of, topic_of, with_command
from streamlib.eventsourcing.commands import GROUP, Answer, CommandSpec, read_command_handler
from streamlib.eventsourcing.repository import Repository
from streamlib.lifespan import Lifespan
from streamlib.message import new_event_id
from streamlib.metrics.worker import WorkerMetrics
from streamlib.producer import Topic
from streamlib.read_model import Index, ReadModel
from streamlib.redisio.limits import read_limits
from streamlib.retry import Breaker, Retry
from streamlib.settings import Settings
from streamlib.topic import TopicSpec, Unknown, checked_id
from streamlib.versions import Upcaster
from streamlib.worker.handlers import GroupSpec, OnDead, Ordering, read_handler
from streamlib.worker.projection import OnError, Projection
from streamlib.worker.rekeying import Rekeying, rekeyed
from streamlib.worker.runner import Worker, WorkerParts

F = TypeVar("F", bound=Callable[..., Any])
A = TypeVar("A", bound=Aggregate)
R = TypeVar("R", bound=ReadModel)
U = TypeVar("U", bound=Upcaster)


class App(Connected):
    """An application: declare topics, handlers and projections, then start it with `streamlib run module:app`.

    `settings` default to streamlib.toml and STREAMLIB_* variables, read when they are first needed.
    """

    def __init__(self, name: str, *, settings: Settings | None = None) -> None:
        super().__init__(name, settings=settings)
        self._lifespan = Lifespan()
        self._commands: dict[type[Command], CommandSpec] = {}
        self._command_bus: CommandBus | None = None
        self._dispatches = False

    # -- declaration --------------------------------------------------------------------------------------------

    def topic(
        self,
        name: str,
        *events: type[Event],
        key: str | None = None,
        partitions: int = 1,
        codec: Codec | None = None,
        unknown: Unknown = "park",
        dedup_window_s: float = 0,
        durability: str = "primary",
    ) -> Topic:
        """Declare a topic and the events it carries. Raises DeclarationError.

        Events with one `key` lie on one of the `partitions`, in order. `unknown` says what happens to types that no
        class declares. `dedup_window_s` > 0 also catches copies of an event id that other producers send. `durability`
        is "primary", "fsync" or "replicas:n".
        """
        registry = Registry(events, self.upcasters)
        if commands := [cls.__name__ for cls in registry.classes if issubclass(cls, Command)]:
            raise DeclarationError(
                f"topic {name!r}: {commands[0]} is a Command, which lies on the app's own topic of commands; "
                "declare its handler with @app.command_handler and send it with app.send"
            )
        spec = TopicSpec(
            name=name,
            registry=registry,
            key=key,
            partitions=partitions,
            codec=codec or NativeCodec(),
            unknown=unknown,
            dedup_window_s=dedup_window_s,
            durability=durability,
        )
        return self._add_topic(spec)

    def _add_topic(self, spec: TopicSpec) -> Topic:
        if spec.name in self.topics:
            raise DeclarationError(f"topic {spec.name!r} is declared twice in app {self.name!r}")
        self.topics[spec.name] = Topic(spec, lambda: self.publisher)
        return self.topics[spec.name]

    def rekey(self, source: Topic, *, key: str, to: str, partitions: int | None = None) -> Topic:
        """Declare the topic `to` with the events of `source` keyed by another field. Raises DeclarationError.

        Workers copy every event, in a group on `source` that is called `to` as well: same envelope, same time and
        data, but for the key and an id of its own, derived from the event's. A copy that a crash repeats has the same
        id: every group and view of `to` takes one of them. `partitions` default to those of `source`.

        Copies of events that had one key in `source` come in their order; of those that had different ones, in any:
        what is made of `to` must not depend on which of them came first. An event whose `key` is None or longer than
        200 bytes goes to the dead letters of the group. Where `to` cannot take a copy, its key waits.
        """
        target = rekeyed(source.spec, key=key, to=to, partitions=partitions)
        self._check_group_name(source, to, self.projections)
        group = self._group(source, to).with_handler(Rekeying(source.spec, target, lambda: self.publisher).handler())
        topic = self._add_topic(target)
        self.groups[source.name, to] = group
        return topic

    def handler(
        self,
        topic: Topic,
        *,
        group: str,
        retry: Retry | None = None,
        timeout: float = 900.0,
        ordering: Ordering = "none",
        on_dead: OnDead = "continue",
        concurrency: int | None = None,
        rate: str | None = None,
        group_concurrency: int | None = None,
        rerun: str = "ok",
        breaker: Breaker | None = None,
    ) -> Callable[[F], F]:
        """Declare a handler of a consumer group: `(event: E | F, ctx)`, or `(events: list[E], ctx)` for batches.

        The annotation says which events it gets; types that no handler of the group takes are skipped. `timeout` is in
        seconds, for one run. `concurrency` bounds the runs at once in one process (default worker.concurrency).
        `rate` ("100/s", or per m, h, d) and `group_concurrency` bound the group over all its workers: events started
        per time, retries included, evenly spread (in the long run 95 of "100/s", 99.9 of "100/m"), and events in
        handlers at once. All handlers of a group declare the same.
        With `ordering="key"` the events of one key run one at a time, in stream order, also across crashes and retries;
        other keys run beside it. A failing event keeps its own key waiting; after the last attempt it goes to the dead
        letters and the key goes on, or with `on_dead="block"` the key stands still until an operator runs
        `streamlib keys resume` or `skip`.
        `rerun="never"` sends an event whose run failed or crashed to the dead letters.
        `breaker` keeps the group's events in Redis while what its handlers call is down, instead of spending their
        attempts; all handlers of a group declare the same. Raises DeclarationError.
        The group's name is state: renamed, it starts anew at the first event.
        """

        def declare(function: F) -> F:
            spec = read_handler(
                function,
                retry=retry or Retry(),
                timeout_s=timeout,
                concurrency=concurrency,
                rerun=rerun,
                limits=read_limits(f"group {group!r}", rate, group_concurrency),
                ordering=ordering,
                on_dead=on_dead,
                breaker=breaker,
            )
            self._check_group_name(topic, group, self.projections)
            self.groups[topic.name, group] = self._group(topic, group).with_handler(spec)
            return function

        return declare

    def projection(
        self,
        name: str,
        topic: Topic,
        row: type[R],
        *,
        key: str,
        indexes: Sequence[Index] = (),
        on_error: OnError = "dead-letter",
    ) -> Projection[R]:
        """Declare a read model of a topic: one row per value of the event field `key`. Raises DeclarationError."""
        if name in self.projections:
            raise DeclarationError(f"projection {name!r} is declared twice in app {self.name!r}")
        self._check_group_name(topic, name, {group for _, group in self.groups})
        self.projections[name] = Projection(
            name,
            topic.spec,
            row,
            key=key,
            indexes=indexes,
            on_error=on_error,
            keys=lambda: self.keys,
            redis=lambda: self.redis,
        )
        return self.projections[name]

    def repository(self, aggregate: type[A], topic: Topic, *, snapshot_every: int | None = None) -> Repository[A]:
        """Declare where the aggregates of a class are kept: as their events, which `topic` carries.

        Ids are unique within a topic. With `snapshot_every` a save keeps a snapshot after so many further events, and a
        load folds what came since. Raises DeclarationError.
        """
        return Repository(aggregate, topic.spec, store=lambda: self.event_store, snapshot_every=snapshot_every)

    @overload
    def command_handler(self, function: F) -> F: ...

    @overload
    def command_handler(self, *, retry: Retry | None = None, timeout: float = 60.0) -> Callable[[F], F]: ...

    def command_handler(
        self, function: F | None = None, *, retry: Retry | None = None, timeout: float = 60.0
    ) -> F | Callable[[F], F]:
        """Declare the one handler of a command: `async def (command: C [, ctx]) -> value`. Raises DeclarationError.

        It loads an aggregate, lets it record events and saves it, by a repository of the app. The save takes place when
        the handler returns, in one script with the answer; where others have changed the aggregate meanwhile the
        handler runs again. What raises writes nothing: check first, and keep effects outside Redis for handlers of the
        recorded events. A command changes one aggregate, or none. `timeout` is in seconds; `retry` is for commands
        that were sent. Use it as `@app.command_handler` or `@app.command_handler(timeout=5)`.
        """

        def declare(handler: F) -> F:
            spec = read_command_handler(handler, retry=retry or Retry(), timeout_s=timeout)
            commands = with_command(self._commands, spec)
            topic = topic_of(self.name, commands, self.upcasters)
            if topic.name in self.topics and not self._commands:
                raise DeclarationError(f"topic {topic.name!r} is that of the app's commands; rename yours")
            declared = Topic(topic, lambda: self.publisher)
            self._check_group_name(declared, GROUP, self.projections)
            self._commands, self._command_bus, self.topics[topic.name] = commands, None, declared
            self.groups[topic.name, GROUP] = group_of(topic, commands, lambda c, ctx: self._bus().handle(c, ctx))
            return handler

        return declare if function is None else declare(function)

    def _group(self, topic: Topic, group: str) -> GroupSpec:
        return self.groups.get((topic.name, group)) or GroupSpec(topic.spec, group)

    def _check_group_name(self, topic: Topic, group: str, others: Any) -> None:
        if group in others:
            raise DeclarationError(
                f"{group!r} on topic {topic.name!r} is both a handler group and a projection; rename one"
            )

    def upcast(self, event: type[Event], *, from_version: int) -> Callable[[U], U]:
        """Declare how stored data of one version of an event become those of the next: `(data: dict) -> dict`, plain.

        From `from_version` on, one step for each version up to that of the class. Handlers, folds and aggregates see
        the class only; what is stored stays as it is. `data` has the stored names and JSON's values: texts, numbers,
        lists, dicts (with a codec of msgpack also its times and bytes). What is returned must fit the class as stored
        data do, else the event goes to the dead letters as `schema`, and so it does when a step raises. A class that
        the topic declares for an old version wins over upcasting. Raises DeclarationError; holes are found when the
        app is opened or checked.
        """

        def declare(function: U) -> U:
            if not any(event in topic.spec.registry.classes for topic in self.topics.values()):
                raise DeclarationError(
                    f"upcast of {getattr(event, '__qualname__', event)}: no topic of app {self.name!r} declares that "
                    "class; declare the topic (or the command's handler) above, and name the class that the data become"
                )
            self.upcasters.add(event_type(event), from_version, event_version(event), function)
            return function

        return declare

    def lifespan(self, function: Callable[[App], AsyncIterator[Mapping[str, Any]]]) -> Callable[..., Any]:
        """Declare what handlers use: an async generator that yields a mapping, `ctx.state`; once per process."""
        self._lifespan.declare(function, self)
        return function

    # -- commands -----------------------------------------------------------------------------------------------

    async def dispatch(self, command: Command, *, idempotency_key: str = "") -> Answer:
        """Run a command here and now, and return its answer.

        With an `idempotency_key` the answer is kept for idempotency.window_s: the same key gives the same answer, and
        runs nothing. Raises what the handler raises, DeclarationError without a handler, StreamlibError inside another
        command's handler, ConcurrencyConflict when others changed its aggregate at every try, IdempotencyConflict for a
        key of another command, PayloadTooLarge for an answer to keep above limits.payload_bytes, TimeoutError and
        RedisUnavailable (then the outcome is unknown) and NotConfirmed: dispatch it again under its key.
        """
        key = checked_id("idempotency key", idempotency_key) if idempotency_key else ""
        bus = self._bus()
        if not self._dispatches:
            self._dispatches = True  # from now on until the app closes: once per process, not per command
            try:
                await self._lifespan.enter()
            except BaseException:
                self._dispatches = False
                raise
        async with self._lifespan.entered() as state:
            return await bus.dispatch(command, key, state)

    async def send(self, command: Command, *, idempotency_key: str = "", delay: float = 0) -> Ticket:
        """Store a command for the workers of group "commands"; the ticket waits for the answer.

        The same `idempotency_key` runs once and gives one answer. Raises DeclarationError without a handler, and what
        `Topic.publish` raises.
        """
        bus = self._bus()
        bus.handler_of(command)
        command_id = idempotency_key or new_event_id()
        position = await self.topics[bus.topic.name].publish(command, id=command_id, delay=delay)
        return Ticket(command_id, position, lambda timeout: self._bus().wait_for(command_id, timeout, command))

    async def wait_for(self, command_id: str, timeout: float) -> Answer:
        """The answer of a command that was sent, by its ticket's id: see `Ticket.wait_for`."""
        return await self._bus().wait_for(command_id, timeout)

    def _bus(self) -> CommandBus:
        if self._command_bus is None:
            window_ms = int(self.settings.idempotency.window_s * 1000)
            topic = topic_of(self.name, self._commands, self.upcasters)
            answer_bytes = self.settings.limits.payload_bytes
            self._command_bus = CommandBus(
                topic, self._commands, self.redis, self.keys, window_ms=window_ms, answer_bytes=answer_bytes
            )
        return self._command_bus

    async def close(self) -> None:
        """Close what dispatched commands have opened, then the connection."""
        used, self._command_bus, self._dispatches = self._dispatches, None, False
        try:
            if used:
                await self._lifespan.leave()
        finally:
            await super().close()

    # -- work ---------------------------------------------------------------------------------------------------

    def blocking(self) -> BlockingApp[App]:
        """The same app for programs without an event loop: `with app.blocking() as shop: shop.publish(...)`."""
        return BlockingApp(self)

    def worker(self, groups: Sequence[str] | None = None, metrics: WorkerMetrics | None = None) -> Worker:
        """A worker for all groups and projections, or for those named. The app must be open while it runs.

        Raises NotFound for a name that nothing has, StreamlibError while the app is closed.
        """
        names = {group for _, group in self.groups} | set(self.projections)
        unknown = sorted(set(groups or ()) - names)
        if unknown:
            raise NotFound(
                f"app {self.name!r} has no group {unknown[0]!r}; it has {', '.join(sorted(names)) or 'none'}"
            )
        chosen = set(groups) if groups else names
        if metrics is not None:
            metrics.connected_to(self._server)
            self.metrics = metrics
        return Worker(
            WorkerParts(
                door=self.redis,
                keys=self.keys,
                settings=self.settings,
                publisher=self.publisher,
                metrics=self.metrics,
                groups=[spec for spec in self.groups.values() if spec.group in chosen],
                projections=[view for name, view in self.projections.items() if name in chosen],
                topics=[topic.spec for topic in self.topics.values()],
                lifespan=self._lifespan.entered,
            )
        )
