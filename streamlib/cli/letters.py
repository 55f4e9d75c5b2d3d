"""What the `dlq` commands share: filter options, a connection to the dead letters, and how one is shown."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import click
import msgspec

from streamlib.cli.output import when
from streamlib.cli.session import connected
from streamlib.ops.dead_letters import DeadLetters, Filters, Found
from streamlib.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

_FILTERS = (
    click.option("--topic", help="Only this topic."),
    click.option("--partition", type=click.IntRange(min=0), help="Only this partition of each topic."),
    click.option("--group", help="Only this group."),
    click.option("--type", help="Only events of this type."),
    click.option("--reason", help="Only this reason: max_attempts, rejected, decode, schema, crash, ..."),
    click.option("--error", help="Only errors that hold this text, in any case."),
    click.option("--fingerprint", help="Only this cause, as `dlq groups` prints it."),
    click.option("--since", "since_ms", type=when, help="Not older: 15m, 2h, 7d, ISO time, entry id."),
    click.option("--until", "until_ms", type=when, help="Not newer; the same forms."),
)  # fmt: skip


def filter_options(default_limit: int) -> Callable[[F], F]:
    """The filter options, folded into one argument `filters`."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def with_filters(*args: Any, **kwargs: Any) -> Any:
            chosen = {name: kwargs.pop(name) for name in Filters.__struct_fields__}
            return function(*args, filters=Filters(**chosen), **kwargs)

        limit = click.option(
            "--limit", type=click.IntRange(min=0), default=default_limit, show_default=True,
            help="At most so many; 0 is all.",
        )  # fmt: skip
        decorated: Any = with_filters
        for option in reversed((*_FILTERS, limit)):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


@contextlib.asynccontextmanager
async def dead_letters(settings: Settings) -> AsyncIterator[DeadLetters]:
    """The dead letters of the Redis that the settings name."""
    async with connected(settings) as session:
        yield DeadLetters(session.redis, session.keys, window_s=settings.idempotency.window_s)


def summary(found: Found) -> dict[str, Any]:
    """What a list says about a dead letter."""
    return {
        "id": found.id,
        "topic": found.place.topic,
        "partition": found.place.partition,
        "group": found.place.group,
        "event_id": found.event_id,
        "type": found.type,
        "reason": found.letter.reason,
        "error": found.letter.error,
        "attempts": found.letter.attempts,
        "replays": found.letter.replays,
        "at": found.at,
        "fingerprint": found.letter.fingerprint,
    }


def shown_in_full(found: Found) -> dict[str, Any]:
    """Everything about a dead letter; `fields` are the entry's own where they are no envelope of ours."""
    letter, message = found.letter, found.message
    full = summary(found) | {
        "entry_id": letter.entry_id,
        "consumer": letter.consumer,
        "traceback": letter.traceback,
    }
    if message is None:
        names, values = letter.fields[::2], letter.fields[1::2]
        return full | {"fields": [[readable(n), readable(v)] for n, v in zip(names, values, strict=False)]}
    return full | {
        "version": message.version,
        "key": message.key,
        "data": _data(message.data),
        "time_ms": message.time_ms,
        "correlation_id": message.correlation_id,
        "causation_id": message.causation_id,
        "traceparent": message.traceparent,
        "headers": message.headers,
    }


def readable(raw: bytes) -> str:
    """UTF-8 text as it is; of other bytes the odd ones as \\xNN."""
    return raw.decode(errors="backslashreplace")


def _data(raw: bytes) -> Any:
    """The event's data: JSON or msgpack as values that JSON can show, anything else as text."""
    with contextlib.suppress(ValueError, RecursionError):
        return _shown_as_json(json.loads(raw))
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        value = msgspec.msgpack.decode(raw)
        if isinstance(value, dict | list):
            return _shown_as_json(msgspec.to_builtins(value, str_keys=True))
    return readable(raw)


def _shown_as_json(value: Any) -> Any:
    """The value. Raises ValueError and RecursionError where it cannot be printed: NaN, or nested too deeply."""
    json.dumps(value, indent=2, allow_nan=False)
    return value
