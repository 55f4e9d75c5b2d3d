"""An app's connection: opens it, checks that this Redis can keep the promises, registers what the app declares."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from streamlib import embedded
from streamlib.errors import ConfigError, RedisUnfit, StreamlibError
from streamlib.keys import Keys, check_name
from streamlib.metrics.worker import WorkerMetrics
from streamlib.producer import Topic
from streamlib.redisio import registry, server
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.durability import check_durability
from streamlib.redisio.event_store import EventStore
from streamlib.redisio.failures import CLIENT_ERRORS, translate
from streamlib.redisio.generations import declare_generations
from streamlib.redisio.publisher import Publisher
from streamlib.settings import Settings, load_settings
from streamlib.topic import check_upcasts
from streamlib.versions import Upcasters
from streamlib.worker.handlers import GroupSpec
from streamlib.worker.projection import Projection


class Connected:
    """What an app has declared, and its connection while it is open."""

    def __init__(self, name: str, *, settings: Settings | None = None) -> None:
        self.name = check_name("app", name)
        self._settings = settings
        self.topics: dict[str, Topic] = {}
        self.upcasters = Upcasters()
        self.groups: dict[tuple[str, str], GroupSpec] = {}
        self.projections: dict[str, Projection[Any]] = {}
        self._door: RedisDoor | None = None
        self._publisher: Publisher | None = None
        self._event_store: EventStore | None = None
        self._embedded: embedded.EmbeddedServer | None = None
        self.metrics = WorkerMetrics()
        self._server = ""

    @property
    def settings(self) -> Settings:
        if self._settings is None:
            self._settings = load_settings()
        return self._settings

    def configure(self, settings: Settings) -> None:
        """Replace the settings; only before the app is open. Raises ConfigError."""
        if self._door is not None:
            raise ConfigError(f"app {self.name!r} is open; configure it before")
        self._settings = settings

    @property
    def keys(self) -> Keys:
        return Keys(self.settings.redis.namespace)

    @property
    def redis(self) -> RedisDoor:
        """The open door. Raises StreamlibError while the app is closed."""
        if self._door is None:
            raise StreamlibError(f"app {self.name!r} is not open; use `async with app:`")
        return self._door

    @property
    def publisher(self) -> Publisher:
        """Raises StreamlibError while the app is closed."""
        if self._publisher is None:
            raise StreamlibError(f"app {self.name!r} is not open; use `async with app:`")
        return self._publisher

    @property
    def event_store(self) -> EventStore:
        """Raises StreamlibError while the app is closed."""
        if self._event_store is None:
            raise StreamlibError(f"app {self.name!r} is not open; use `async with app:`")
        return self._event_store

    def check_declared(self) -> None:
        """Raise DeclarationError where what was declared does not fit together: what only all of it can show."""
        check_upcasts(self.upcasters, [topic.spec for topic in self.topics.values()])

    async def open(self, door: RedisDoor | None = None) -> None:
        """Connect, check that this Redis can keep the promises, and create every declared topic and group.

        Raises ConfigError, TopicMismatch, RedisUnavailable, RedisUnfit, WrongKeyType.
        """
        if self._door is not None:
            raise StreamlibError(f"app {self.name!r} is open already")
        self.check_declared()
        try:
            self._door = door or await self._connect()
            await self._check_server(self._door)
            await self._declare(self._door)
            limits = self.settings.limits
            self._publisher = Publisher(self._door, self.keys, limits, observe=self._observe)
            encode = self._publisher.encode
            self._event_store = EventStore(self._door, self.keys, limits, encode, observe=self._observe)
        except BaseException:
            await self.close()
            raise

    async def _connect(self) -> RedisDoor:
        url, self._embedded = await asyncio.to_thread(embedded.resolve, self.settings.redis.url)
        return RedisDoor.open(_with_url(self.settings, url).redis)

    async def _check_server(self, door: RedisDoor) -> None:
        async def probe() -> list[server.ServerInfo]:
            return await server.probe(door)

        try:
            servers = await door.persist(probe, give_up_s=door.settings.retry_s)
        except CLIENT_ERRORS as error:
            raise translate(error, door.settings.url) from error
        fatal = [finding for finding in server.check(servers, self.settings) if finding.fatal and not finding.ok]
        if fatal:
            raise RedisUnfit("; ".join(finding.detail for finding in fatal))
        self._server = ", ".join(sorted({f"{info.kind} {info.version}" for info in servers}))
        self.metrics.connected_to(self._server)

    async def _declare(self, door: RedisDoor) -> None:
        for topic in self.topics.values():
            await check_durability(door, topic.spec)
            await registry.declare_topic(door, self.keys, topic.spec)
        for spec in self.groups.values():
            await registry.declare_group(door, self.keys, spec.topic, spec.group, spec.kind, spec.type_names)
        for view in self.projections.values():
            await declare_generations(door, self.keys, view.topic, view.name, view.type_names)

    async def close(self) -> None:
        """Wait for publishes under way, close the connections, stop the embedded server if we started it."""
        publisher, store, door, started = self._publisher, self._event_store, self._door, self._embedded
        self._publisher = self._event_store = self._door = self._embedded = None
        if publisher is not None:
            await publisher.close()
        if store is not None:
            await store.close()
        if door is not None:
            await door.close()
        if started is not None:
            await asyncio.to_thread(started.stop)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _observe(self, topic: str, outcome: str, n: int, seconds: float) -> None:
        self.metrics.topic(topic).published(outcome, n, seconds)


def _with_url(settings: Settings, url: str) -> Settings:
    from_settings = settings.redis
    values = {name: getattr(from_settings, name) for name in from_settings.__struct_fields__}
    changed = type(from_settings)(**{**values, "url": url})
    others = {name: getattr(settings, name) for name in settings.__struct_fields__ if name != "redis"}
    return Settings(redis=changed, **others)
