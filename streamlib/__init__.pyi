"""The public names, for type checkers; `__init__.py` finds them lazily at run time."""

from streamlib.app import App
from streamlib.codec import FlatCodec, NativeCodec, RawCodec
from streamlib.errors import (
    AggregateNotFound,
    CommandFailed,
    ConcurrencyConflict,
    IdempotencyConflict,
    NotConfirmed,
    PayloadTooLarge,
    PublishError,
    RedisUnavailable,
    Reject,
    RetryLater,
    StreamlibError,
    TopicFull,
)
from streamlib.event import Command, Event
from streamlib.eventsourcing.aggregate import Aggregate, applies
from streamlib.eventsourcing.command_queue import Ticket
from streamlib.eventsourcing.commands import Answer
from streamlib.eventsourcing.repository import Recorded, Repository
from streamlib.message import Position
from streamlib.producer import Topic
from streamlib.read_model import Exact, Ordered, Page, Prefix, ReadModel
from streamlib.retry import Breaker, Retry
from streamlib.settings import Settings, load_settings
from streamlib.worker.context import BatchContext, Context

__all__ = [
    "Aggregate",
    "AggregateNotFound",
    "Answer",
    "App",
    "BatchContext",
    "Breaker",
    "Command",
    "CommandFailed",
    "ConcurrencyConflict",
    "Context",
    "Event",
    "Exact",
    "FlatCodec",
    "IdempotencyConflict",
    "NativeCodec",
    "NotConfirmed",
    "Ordered",
    "Page",
    "PayloadTooLarge",
    "Position",
    "Prefix",
    "PublishError",
    "RawCodec",
    "ReadModel",
    "Recorded",
    "RedisUnavailable",
    "Reject",
    "Repository",
    "Retry",
    "RetryLater",
    "Settings",
    "StreamlibError",
    "Ticket",
    "Topic",
    "TopicFull",
    "applies",
    "load_settings",
]
