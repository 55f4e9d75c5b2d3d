"""Errors of the client by class: what each says about the command, what to do next, and ours to raise instead."""

from __future__ import annotations

import asyncio
import enum

import redis.exceptions

from streamlib.errors import ConfigError, RedisUnavailable, RedisUnfit, StreamlibError, WrongKeyType
from streamlib.redisio.address import is_encrypted
from streamlib.redisio.tls import handshake_error, told
from streamlib.settings import redact

CLIENT_ERRORS = (redis.exceptions.RedisError, OSError)
NoScriptError = redis.exceptions.NoScriptError
"""What a command may raise, for whoever has to catch it."""


class SetupError(redis.exceptions.ResponseError):
    """redis.url leads to servers that are not what it says: an unknown primary's name, no cluster, no sentinel."""


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
    (SetupError, ErrorClass.CONFIG),
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

_ENDED = ("Connection closed by server.", "'Connection reset by peer')")
"""So end the client's errors about a server that hung up: what one does that waits for a handshake."""


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
    if handshake_error(error):
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


def translate(error: Exception, url: str) -> StreamlibError:
    """The error of ours that says what a client error means and what to do."""
    where = redact(url)
    if isinstance(error, StreamlibError):
        return error
    if isinstance(error, SetupError):
        return ConfigError(f"redis.url {where}: {error}")
    error_class, code = classify(error), error_code(error)
    if code == "WRONGTYPE":
        return WrongKeyType(
            f"a key that streamlib uses holds another type in {where} ({error}); rename or remove that key, "
            "or set redis.namespace"
        )
    if code == "NOPERM" or isinstance(error, redis.exceptions.NoPermissionError):
        return RedisUnavailable(f"Redis at {where} denies a command: {error}; grant the user that right")
    if refused := handshake_error(error):
        return RedisUnavailable(f"Redis at {where} {told(refused, error)}")
    if error_class is ErrorClass.CONFIG:
        return RedisUnavailable(f"Redis at {where} refused our credentials or setup: {error}; check redis.url")
    if error_class is ErrorClass.PAUSE:
        return RedisUnavailable(f"Redis at {where} takes no writes now: {error}")
    if error_class is ErrorClass.MIGRATE:
        return RedisUnavailable(
            f"Redis at {where} is still moving a slot: {error}; has its migration stopped half-way?"
        )
    if error_class is ErrorClass.FAILOVER and url.startswith(("sentinel:", "cluster:")):
        return RedisUnavailable(f"Redis at {where} has no primary that is ready yet: {error}")
    if code == "READONLY" or isinstance(error, redis.exceptions.ReadOnlyError):
        return RedisUnfit(f"Redis at {where} is read-only, a replica; point redis.url at the primary")
    if error_class is ErrorClass.BUG:
        return StreamlibError(f"Redis at {where} answered unexpectedly: {error}")
    return RedisUnavailable(f"Redis at {where} is not reachable: {error}; {_doubts(error, url)}?")


def _doubts(error: Exception, url: str) -> str:
    doubts = "is it running, is redis.url right"
    if not url.startswith("embedded:") and is_encrypted(url):
        return f"{doubts}, does that port speak TLS, and without a certificate of ours (ssl_certfile=)"
    if str(error).endswith(_ENDED):
        return f"{doubts}, does that port want TLS (rediss://, or tls=1 with several servers)"
    return doubts
