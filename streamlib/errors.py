"""Every error that streamlib raises on purpose: one tree, so that callers catch by name.

StreamlibError
├── ConfigError                 the app or its settings are wrong (exit code 2)
│   ├── SettingsError           a setting is unknown or out of range
│   ├── AppImportError          `module:attribute` does not lead to an App
│   ├── SchemaFileError         a file of schemas is missing or holds none
│   └── DeclarationError        an event, topic, handler or projection is declared wrongly
├── RedisError
│   ├── RedisUnavailable        not reachable, or it refused our credentials (exit code 3)
│   ├── RedisUnfit              reachable, but cannot keep the promises (too old, evicting, read-only)
│   └── WrongKeyType            a key of ours holds another type
├── TopicMismatch               the stored partition count differs from the declared one
├── PublishError
│   ├── TopicFull               the topic holds limits.topic_len entries
│   ├── PayloadTooLarge         above limits.payload_bytes
│   ├── NotConfirmed            stored, but not as durably as asked
│   └── IdempotencyConflict     the same event id with another content
├── DecodeError                 an entry is no event; `.reason` is the dead letter's reason
│   ├── SchemaError             the event's fields do not fit its class
│   └── UnknownType             no class for this type and version
├── CommandFailed               a command that was sent has failed for good
├── ConcurrencyConflict         another has changed the aggregate since it was loaded
├── UnappliedEvent              an aggregate met an event that it does not know
├── NotFound                    a topic, group, view or dead letter that does not exist (exit code 4)
│   └── AggregateNotFound       no event was ever saved under this id
├── Refused                     a destructive verb without consent (exit code 5)
├── Fenced                      another worker owns this now
├── Reject                      raised by handlers: straight to the dead letters
└── RetryLater                  raised by handlers: again after `delay` seconds
"""

from __future__ import annotations


class StreamlibError(Exception):
    """Root of the tree."""


class ConfigError(StreamlibError):
    """The app or its settings are wrong; nothing was started."""


class SettingsError(ConfigError):
    """A setting is unknown, malformed or out of range."""


class AppImportError(ConfigError):
    """`module:attribute` does not lead to an App."""


class SchemaFileError(ConfigError):
    """A file of schemas is missing or cannot be read, or an event has no schema to put there."""


class DeclarationError(ConfigError):
    """An event, topic, handler or projection is declared wrongly."""


class RedisError(StreamlibError):
    """Redis cannot be used as asked."""


class RedisUnavailable(RedisError):
    """Redis does not answer, or refused our credentials."""


class RedisUnfit(RedisError):
    """Redis answers, but as it is set up it cannot keep the promises."""


class WrongKeyType(RedisError):
    """A key that streamlib uses holds a value of another type."""


class TopicMismatch(ConfigError):
    """The partition count stored in Redis differs from the declared one."""


class PublishError(StreamlibError):
    """The event was not stored as asked."""


class TopicFull(PublishError):
    """The topic's partition is at limits.topic_len; nothing was dropped and nothing was stored."""


class PayloadTooLarge(PublishError):
    """The encoded event is above limits.payload_bytes."""


class NotConfirmed(PublishError):
    """Stored on the primary, but fewer copies than asked confirmed it; a resend under the same id is safe."""


class IdempotencyConflict(PublishError):
    """An event with this id was published before with another content."""


class DecodeError(StreamlibError):
    """An entry cannot be read as an event."""

    reason = "decode"


class SchemaError(DecodeError):
    """The event's data does not fit the class of its type and version."""

    reason = "schema"


class UnknownType(DecodeError):
    """No class of the topic has this type and version."""

    reason = "unknown_type"


class CommandFailed(StreamlibError):
    """A command that was sent through a stream has failed for good; it is among the dead letters."""


class ConcurrencyConflict(StreamlibError):
    """Another has changed the aggregate since it was loaded; nothing was written.

    `expected` is the version that was saved upon, `actual` the one that Redis has.
    """

    def __init__(self, text: str, expected: int = 0, actual: int = 0) -> None:
        super().__init__(text, expected, actual)
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return str(self.args[0])


class UnappliedEvent(StreamlibError):
    """None of an aggregate's methods applies an event that it recorded or that is stored."""


class NotFound(StreamlibError):
    """The named thing does not exist."""


class AggregateNotFound(NotFound):
    """No event was ever saved under this aggregate id, or none up to the version or time that was asked for."""


class Refused(StreamlibError):
    """A destructive act was not agreed to."""


class Fenced(StreamlibError):
    """Another worker owns this partition now; nothing was written."""


class Reject(StreamlibError):
    """Raised by a handler: the event can never succeed, put it among the dead letters now."""


class RetryLater(StreamlibError):
    """Raised by a handler: run this event again after `delay` seconds; it counts as an attempt."""

    def __init__(self, delay: float, reason: str = "") -> None:
        if not 0 <= delay <= 30 * 86_400:
            raise ValueError(f"RetryLater(delay={delay}): a delay is 0 seconds to 30 days")
        super().__init__(reason or f"the handler asked to be run again in {delay:g} s")
        self.delay = delay
