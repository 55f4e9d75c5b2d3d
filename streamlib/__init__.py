"""streamlib: a worker platform on Redis Streams.

Names are imported when they are first used, so that `streamlib --help` loads neither the Redis client nor
the metrics.
`__init__.pyi` tells type checkers the same names.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "streamlib.app": ("App",),
    "streamlib.codec": ("FlatCodec", "NativeCodec", "RawCodec"),
    "streamlib.errors": (
        "AggregateNotFound",
        "CommandFailed",
        "ConcurrencyConflict",
        "IdempotencyConflict",
        "NotConfirmed",
        "PayloadTooLarge",
        "PublishError",
        "RedisUnavailable",
        "Reject",
        "RetryLater",
        "StreamlibError",
        "TopicFull",
    ),
    "streamlib.event": ("Command", "Event"),
    "streamlib.eventsourcing.aggregate": ("Aggregate", "applies"),
    "streamlib.eventsourcing.command_queue": ("Ticket",),
    "streamlib.eventsourcing.commands": ("Answer",),
    "streamlib.eventsourcing.repository": ("Recorded", "Repository"),
    "streamlib.message": ("Position",),
    "streamlib.producer": ("Topic",),
    "streamlib.read_model": ("Exact", "Ordered", "Page", "Prefix", "ReadModel"),
    "streamlib.retry": ("Breaker", "Retry"),
    "streamlib.settings": ("Settings", "load_settings"),
    "streamlib.worker.context": ("BatchContext", "Context"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'streamlib' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value
