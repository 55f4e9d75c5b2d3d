"""A connection for one command: embedded server started if need be, Redis asked first, errors translated."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import msgspec

from streamlib.embedded import resolve
from streamlib.keys import Keys
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.failures import CLIENT_ERRORS, translate
from streamlib.settings import RedisSettings, Settings


class Session:
    """An open door and the key names of its namespace."""

    def __init__(self, redis: RedisDoor, settings: Settings) -> None:
        self.redis = redis
        self.keys = Keys(settings.redis.namespace)
        self.settings = settings


@contextlib.asynccontextmanager
async def connected(settings: Settings, *, ask_first: bool = True) -> AsyncIterator[Session]:
    """A session. Raises RedisUnavailable at once when Redis does not answer: a person waits for this."""
    url, server = resolve(settings.redis.url)
    door = RedisDoor.open(msgspec.structs.replace(settings.redis, url=url))
    try:
        with translated(settings.redis):
            if ask_first:
                await door.execute("PING")
            yield Session(door, settings)
    finally:
        await door.close()
        if server is not None:
            server.stop()


@contextlib.contextmanager
def translated(settings: RedisSettings) -> Iterator[None]:
    """Errors of the client come out as ours."""
    try:
        yield
    except CLIENT_ERRORS as error:
        raise translate(error, settings.url) from error
