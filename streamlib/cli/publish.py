"""`streamlib publish`: JSON lines into a topic."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar

import click
import msgspec
from msgspec import Struct

from streamlib.app import App
from streamlib.cli.app_import import load_app
from streamlib.cli.exits import Exit
from streamlib.cli.options import Given, json_option, shared_options
from streamlib.cli.output import note, print_json, progress
from streamlib.cli.session import translated
from streamlib.codec import NativeCodec
from streamlib.errors import DecodeError, NotFound, PublishError, RedisError, StreamlibError
from streamlib.event import Event, event_type, event_version
from streamlib.message import Message
from streamlib.redisio.later import delay_ms
from streamlib.redisio.publisher import Sent
from streamlib.topic import TopicSpec, raise_version

T = TypeVar("T")

BATCH = 500
CHUNK_BYTES = 256 * 1024
MAX_LINE_BYTES = 16 * 1024 * 1024
SHOWN_FAILURES = 100
_json = NativeCodec()


class Line(Struct, frozen=True, forbid_unknown_fields=True):
    """One line of input. Without `version` the newest version of the type is meant."""

    type: str
    data: msgspec.Raw
    id: str | None = None
    key: str | None = None
    version: int | None = None
    delay: float = 0


class Tally:
    """What has been published, and what not."""

    def __init__(self) -> None:
        self.published = 0
        self.duplicates = 0
        self.failed = 0
        self.last_line = 0

    def fail(self, number: int, error: Exception) -> None:
        self.failed += 1
        if self.failed <= SHOWN_FAILURES:
            note(f"line {number}: {error}")
        elif self.failed == SHOWN_FAILURES + 1:
            note("further failed lines are counted, not shown")


@click.command("publish")
@click.argument("app_path", metavar="APP")
@click.argument("topic_name", metavar="TOPIC")
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--strict", is_flag=True, help="Stop at the first line that fails.")
@json_option
@shared_options
def command(given: Given, app_path: str, topic_name: str, file: BinaryIO, strict: bool, as_json: bool) -> None:
    """Publish the events in FILE (or standard input, -) into TOPIC of APP, given as module:attribute.

    Each line is {"type": ..., "data": {...}} with, if wanted, "id", "key", "version" and "delay" (seconds). A
    line that fails is named on stderr and the rest goes on; the exit code is 6 then. Lines with an id may be sent again
    safely into topics with a dedup window.
    """
    settings = given.settings()
    app = load_app(app_path)
    app.configure(settings)
    if topic_name not in app.topics:
        raise NotFound(f"{app_path} has no topic {topic_name!r}; it has: {', '.join(sorted(app.topics))}")
    tally = Tally()
    try:
        _publish(app, app.topics[topic_name].spec, file, tally, strict=strict)
    except StreamlibError:
        if tally.last_line:
            note(f"stopped: everything up to line {tally.last_line} had been handled before")
        raise
    finally:
        answer = {"published": tally.published, "duplicates": tally.duplicates}
        if tally.failed:
            answer["failed"] = tally.failed
        if as_json:
            print_json(answer)
        else:
            click.echo(" ".join(f"{name}={n}" for name, n in answer.items()))
    if tally.failed:
        given.ctx.exit(Exit.PARTLY)


def _publish(app: App, topic: TopicSpec, file: BinaryIO, tally: Tally, *, strict: bool) -> None:
    """Reading blocks between runs of the loop: a slow pipe stops nothing, and Ctrl-C ends it at once."""
    with asyncio.Runner() as runner, progress("publishing") as advance:

        def run(work: Coroutine[Any, Any, T]) -> T:
            with translated(app.settings.redis):
                return runner.run(work)

        run(app.open())
        try:
            for batch in _batches(file):
                messages: list[tuple[int, Message, int]] = []
                for number, text in batch:
                    try:
                        messages.append((number, *read_line(topic, text)))
                    except (PublishError, BadLine) as error:
                        tally.fail(number, error)
                        if strict:
                            break
                delays_ms = [delay for _, _, delay in messages]
                results = run(app.publisher.send(topic, [message for _, message, _ in messages], delays_ms=delays_ms))
                _count([number for number, _, _ in messages], results, tally)
                tally.last_line = batch[-1][0]
                advance(len(batch))
                if strict and tally.failed:
                    break
        finally:
            run(app.close())


class BadLine(Exception):
    """A line that is no event of the topic."""


def read_line(topic: TopicSpec, text: bytes) -> tuple[Message, int]:
    """The line's event in its envelope, and its delay in ms. Raises BadLine and PublishError."""
    try:
        line = msgspec.json.decode(text, type=Line)
        event = _event(topic, line)
    except (msgspec.DecodeError, DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLine(str(error)) from error
    except Exception as error:  # an event class runs code of its user's (__post_init__)
        raise BadLine(f"{type(error).__name__}: {error}") from error
    return topic.message(event, event_id=line.id, key=line.key), delay_ms(line.delay)


def _event(topic: TopicSpec, line: Line) -> Event:
    """Of an older version, raised: as an archive has it. Raises UnknownType, DecodeError and msgspec's errors."""
    versions = [event_version(cls) for cls in topic.registry.classes if event_type(cls) == line.type]
    version = max(versions, default=1) if line.version is None else line.version
    cls = topic.registry.find(line.type, version)
    message = Message(id=line.id or "", type=line.type, version=version, data=bytes(line.data))
    event: Event = msgspec.json.decode(raise_version(topic.registry, _json, message).data, type=cls)
    return event


def _count(numbers: Sequence[int], results: Sequence[Sent | PublishError], tally: Tally) -> None:
    for number, result in zip(numbers, results, strict=True):
        if isinstance(result, PublishError) and isinstance(result.__cause__, RedisError):
            raise result.__cause__
        if isinstance(result, PublishError):
            tally.fail(number, result)
        elif result.duplicate:
            tally.duplicates += 1
        else:
            tally.published += 1


def _batches(file: Any) -> Iterator[list[tuple[int, bytes]]]:
    """Numbered lines that are not blank, as they arrive, at most BATCH at once."""
    numbers = itertools.count(1)
    rest = b""
    while chunk := file.read1(CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise StreamlibError(f"line {next(numbers) + len(lines)} is longer than {MAX_LINE_BYTES} bytes")
        yield from _cut(lines, numbers)
    yield from _cut([rest], numbers)


def _cut(lines: list[bytes], numbers: Iterator[int]) -> Iterator[list[tuple[int, bytes]]]:
    found = [(number, line) for line, number in zip(lines, numbers, strict=False) if line.strip()]
    for start in range(0, len(found), BATCH):
        yield found[start : start + BATCH]
