"""The one door to Redis: clients for a URL, errors by class, and retries that know which errors may be retried."""

from __future__ import annotations

import asyncio
import enum
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.backoff
import redis.exceptions
import redis.retry

from streamlib.errors import ConfigError, RedisUnavailable, RedisUnfit, StreamlibError, WrongKeyType
from streamlib.redisio.address import check_address
from streamlib.redisio.packing import packed_by_hiredis
from streamlib.settings import RedisSettings, redact

T = TypeVar("T")

AsyncFactory = Callable[[float], "redis.asyncio.Redis"]
SyncFactory = Callable[[float], "redis.Redis"]


class ErrorClass(enum.Enum):
    """What an error from the client says about the command and about what to do next."""

    NETWORK = "network"  # outcome unknown: resend only what may be sent twice
    FAILOVER = "failover"  # another node answers for this soon
    MIGRATE = "migrate"  # the slot is moving
    PAUSE = "pause"  # refused before it was done: full, out of memory, busy
    LOST_STATE = "lost_state"  # group, stream or script is gone: make it again
    CONFIG = "config"  # a person must act: credentials, rights, wrong type
    BUG = "bug"


_BY_PREFIX = {
    "READONLY": ErrorClass.FAILOVER,
    "UNBLOCKED": ErrorClass.FAILOVER,
    "LOADING": ErrorClass.FAILOVER,
    "MASTERDOWN": ErrorClass.FAILOVER,
    "MOVED": ErrorClass.MIGRATE,
    "ASK": ErrorClass.MIGRATE,
    "TRYAGAIN": ErrorClass.MIGRATE,
    "CLUSTERDOWN": ErrorClass.PAUSE,
    "MISCONF": ErrorClass.PAUSE,
    "NOREPLICAS": ErrorClass.PAUSE,
    "OOM": ErrorClass.PAUSE,
    "BUSY": ErrorClass.PAUSE,
    "NOGROUP": ErrorClass.LOST_STATE,
    "NOSCRIPT": ErrorClass.LOST_STATE,
    "WRONGPASS": ErrorClass.CONFIG,
    "NOAUTH": ErrorClass.CONFIG,
    "NOPERM": ErrorClass.CONFIG,
    "WRONGTYPE": ErrorClass.CONFIG,
    "CROSSSLOT": ErrorClass.CONFIG,
    "unknown": ErrorClass.CONFIG,
}

# What scripts are told instead of NOPERM: by Valkey and Redis 7.2 or later, by Redis 7.0.
_DENIED_IN_SCRIPT = ("ACL failure in script", "The user executing the script can't")

_BY_TYPE: tuple[tuple[type[Exception], ErrorClass], ...] = (
    (redis.exceptions.AuthenticationError, ErrorClass.CONFIG),
    (redis.exceptions.AuthorizationError, ErrorClass.CONFIG),
    (redis.exceptions.NoPermissionError, ErrorClass.CONFIG),
    (redis.exceptions.ClusterCrossSlotError, ErrorClass.CONFIG),
    (redis.exceptions.BusyLoadingError, ErrorClass.FAILOVER),
    (redis.exceptions.ReadOnlyError, ErrorClass.FAILOVER),
    (redis.exceptions.MasterDownError, ErrorClass.FAILOVER),
    (redis.exceptions.MovedError, ErrorClass.MIGRATE),
    (redis.exceptions.AskError, ErrorClass.MIGRATE),
    (redis.exceptions.TryAgainError, ErrorClass.MIGRATE),
    (redis.exceptions.ClusterDownError, ErrorClass.PAUSE),
    (redis.exceptions.OutOfMemoryError, ErrorClass.PAUSE),
    (redis.exceptions.NoScriptError, ErrorClass.LOST_STATE),
    (redis.exceptions.ConnectionError, ErrorClass.NETWORK),
    (redis.exceptions.TimeoutError, ErrorClass.NETWORK),
    (OSError, ErrorClass.NETWORK),
    (asyncio.TimeoutError, ErrorClass.NETWORK),
)

_KINDS: tuple[tuple[str, tuple[type[Exception], ...], str], ...] = (
    ("timeout", (redis.exceptions.TimeoutError, asyncio.TimeoutError), ""),
    ("oom", (redis.exceptions.OutOfMemoryError,), "OOM"),
    ("readonly", (redis.exceptions.ReadOnlyError,), "READONLY"),
    ("noscript", (redis.exceptions.NoScriptError,), "NOSCRIPT"),
    ("nogroup", (), "NOGROUP"),
)

RETRYABLE = frozenset({ErrorClass.NETWORK, ErrorClass.FAILOVER, ErrorClass.MIGRATE, ErrorClass.PAUSE})


def error_code(error: BaseException) -> str:
    """The server's own word for an error ("NOGROUP", "WRONGTYPE"), "" where there is none.

    A script passes on what a command in it answered, behind a text of its own; the first known word counts. The client
    takes the word away where it has a class of its own for it.
    """
    if str(error).startswith(_DENIED_IN_SCRIPT):
        return "NOPERM"
    for word in str(error).replace(":", " ").split():
        if word in _BY_PREFIX:
            return word
    return ""


def classify(error: BaseException) -> ErrorClass:
    """The class of an error raised by the client."""
    if _is_certificate_refused(error):
        return ErrorClass.CONFIG
    for kind, error_class in _BY_TYPE:
        if isinstance(error, kind):
            return error_class
    if isinstance(error, redis.exceptions.ResponseError):
        return _BY_PREFIX.get(error_code(error), ErrorClass.BUG)
    return ErrorClass.BUG


def error_kind(error: BaseException) -> str:
    """The error in a word, for metrics: timeout connection oom readonly noscript nogroup, else the class's name."""
    error_class, code = classify(error), error_code(error)
    for kind, types, word in _KINDS:
        if isinstance(error, types) or (word and word == code):
            return kind
    return "connection" if error_class is ErrorClass.NETWORK else error_class.value


def _is_certificate_refused(error: BaseException) -> bool:
    """The client hides it in a connection error, but no retry mends it."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, ssl.SSLCertVerificationError):
        inner = inner.__cause__ or inner.__context__
    return inner is not None


def translate(error: Exception, url: str) -> StreamlibError:
    """The error of ours that says what a client error means and what to do."""
    where = redact(url)
    if isinstance(error, StreamlibError):
        return error
    error_class, code = classify(error), error_code(error)
    if code == "WRONGTYPE":
        return WrongKeyType(
            f"a key that streamlib uses holds another type in {where} ({error}); rename or remove that key, "
            "or set redis.namespace"
        )
    if code == "NOPERM" or isinstance(error, redis.exceptions.NoPermissionError):
        return RedisUnavailable(f"Redis at {where} denies a command: {error}; grant the user that right")
    if _is_certificate_refused(error):
        return RedisUnavailable(
            f"Redis at {where} has a certificate that we do not trust: {error}; check redis.ca_file and the host's name"
        )
    if error_class is ErrorClass.CONFIG:
        return RedisUnavailable(f"Redis at {where} refused our credentials or setup: {error}; check redis.url")
    if error_class is ErrorClass.PAUSE:
        return RedisUnavailable(f"Redis at {where} takes no writes now: {error}")
    if code == "READONLY" or isinstance(error, redis.exceptions.ReadOnlyError):
        return RedisUnfit(f"Redis at {where} is read-only, a replica; point redis.url at the primary")
    if error_class is ErrorClass.BUG:
        return StreamlibError(f"Redis at {where} answered unexpectedly: {error}")
    return RedisUnavailable(f"Redis at {where} is not reachable: {error}; is it running, is redis.url right?")


class RedisDoor:
    """Clients for one Redis. Replies come as the server sends them (RESP2, bytes); nothing is retried in secret.

    redis-py resends any command up to 10 times by default, also one that is not safe to repeat, and cuts reads at
    5 s; both are off here. Whoever may repeat a command says so with `persist`.
    """

    def __init__(self, settings: RedisSettings, async_factory: AsyncFactory, sync_factory: SyncFactory) -> None:
        self.settings = settings
        self._async_factory = async_factory
        self._sync_factory = sync_factory
        self._shared = self._client(settings.timeout_s)

    @classmethod
    def open(cls, settings: RedisSettings) -> RedisDoor:
        """A door for `settings.url`; nothing is sent yet. Raises ConfigError for a URL of the wrong form."""
        options = _options(settings)
        no_backoff = redis.backoff.NoBackoff()

        def make_async(timeout_s: float) -> redis.asyncio.Redis:
            retry = redis.asyncio.retry.Retry(no_backoff, 0)
            return packed_by_hiredis(
                redis.asyncio.Redis.from_url(
                    settings.url, socket_timeout=timeout_s, retry=retry, max_connections=256, **options
                )
            )

        def make_sync(timeout_s: float) -> redis.Redis:
            retry = redis.retry.Retry(no_backoff, 0)
            return redis.Redis.from_url(settings.url, socket_timeout=timeout_s, retry=retry, **options)

        try:
            return cls(settings, make_async, make_sync)
        except ValueError as error:
            raise ConfigError(f"redis.url {redact(settings.url)}: {error}") from error

    def _client(self, timeout_s: float) -> redis.asyncio.Redis:
        client = self._async_factory(timeout_s)
        client.response_callbacks.clear()
        return client

    async def execute(self, *command: Any) -> Any:
        """Send one command on the shared pool; the raw reply. Raises what the client raises."""
        return await _cancellable(self._shared.execute_command(*command))  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await self._shared.aclose()

    def blocking(self, block_ms: int) -> Lane:
        """A connection of its own for reads that block up to `block_ms`."""
        return Lane(self._client(block_ms / 1000 + self.settings.timeout_s))

    def lane(self) -> Lane:
        """A connection of its own: what must stay together (a write and its WAIT) goes through one lane."""
        return Lane(self._client(self.settings.timeout_s))

    def sync_client(self) -> SyncClient:
        """A client of its own for a thread."""
        client = self._sync_factory(self.settings.timeout_s)
        client.response_callbacks.clear()
        return SyncClient(client)

    async def persist(
        self,
        operation: Callable[[], Awaitable[T]],
        *,
        give_up_s: float | None,
        on_error: Callable[[str, Exception], None] | None = None,
    ) -> T:
        """Run an operation that may be sent twice until it succeeds.

        Network, failover, migration and pause errors are retried with jittered backoff (25 ms to 2 s) for
        `give_up_s` seconds, then raised as RedisUnavailable. With `give_up_s=None` it goes on for ever, and
        configuration errors (credentials, rights) are asked again every 5 s too, for they get mended under running
        workers. Everything else is raised as it is. `on_error(kind, error)` hears of every failed try.
        """
        started, pause_s = time.monotonic(), 0.025
        while True:
            try:
                return await operation()
            except (redis.exceptions.RedisError, OSError) as error:
                error_class = classify(error)
                if on_error is not None:
                    on_error(error_class.value, error)
                patient = give_up_s is None and error_class is ErrorClass.CONFIG and error_code(error) != "WRONGTYPE"
                if error_class not in RETRYABLE and not patient:
                    raise
                waited = time.monotonic() - started
                if give_up_s is not None and waited + pause_s > give_up_s:
                    raise translate(error, self.settings.url) from error
                await asyncio.sleep(5.0 if patient else pause_s * random.uniform(0.5, 1.5))
                pause_s = min(pause_s * 2, 2.0)


async def _cancellable(reply: Awaitable[T]) -> T:
    """Await a client's reply without losing a cancellation.

    redis-py sends within asyncio.wait_for, which on Python 3.11 drops a cancellation that arrives as the sending
    ends; a loop that is to be ended by it would then go on for ever.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        found = await reply
    except Exception as error:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return found


class Lane:
    """One connection that nobody else uses."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    async def execute(self, *command: Any) -> Any:
        return await _cancellable(self._client.execute_command(*command))  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await self._client.aclose()


class SyncClient:
    """A blocking client for a thread; raw replies."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def execute(self, *command: Any) -> Any:
        return self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._client.close()


CLIENT_ERRORS = (redis.exceptions.RedisError, OSError)
NoScriptError = redis.exceptions.NoScriptError
"""What a command may raise, for whoever has to catch it."""


def _options(settings: RedisSettings) -> dict[str, Any]:
    scheme = check_address(settings.url)
    options: dict[str, Any] = {"protocol": 2, "socket_connect_timeout": settings.timeout_s}
    if scheme != "unix":
        options["socket_keepalive"] = True
    if scheme == "rediss" and settings.ca_file:
        options["ssl_ca_certs"] = settings.ca_file
    return options
