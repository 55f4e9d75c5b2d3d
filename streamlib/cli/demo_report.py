"""What the demo tells while it runs and at its end: words shared by `streamlib demo` and its app."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct, field


class DemoOptions(Struct, frozen=True, kw_only=True):
    """What to run: the first `events` events (all when None), on the Redis at `redis_url` or a private one.

    `hold` is called with the result while everything still runs; the demo ends when it returns.
    """

    events: int | None = None
    redis_url: str | None = None
    hold: Callable[[DemoResult], None] | None = None


class DemoProgress(Struct, frozen=True, kw_only=True):
    """One moment: news if there are any, how many events are published, and how many each group has left."""

    news: str = ""
    total: int = 0
    published: int = 0
    backlog: dict[str, int] = field(default_factory=dict)


class DemoResult(Struct, frozen=True, kw_only=True):
    """How it ended.

    `groups` counts what each group handled, `dead` the dead letters of all groups, `duplicates` the repeated
    effects that were refused, `recovered` what the killed worker held. `mismatches` says how the results
    differ from the facts computed straight from the file; `verified` is that there is none.
    """

    events: int
    published: int
    groups: dict[str, int]
    dead: int
    duplicates: int
    recovered: int
    seconds: float
    verified: bool
    mismatches: list[str]
    metrics_url: str
    dead_reason: str
    boards: dict[str, list[dict[str, Any]]]


Report = Callable[[DemoProgress], None]
