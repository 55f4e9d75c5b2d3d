"""Commands without an aggregate: one handler each, one answer per key, dispatched here or sent to workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from streamlib import (
    Answer,
    App,
    Command,
    CommandFailed,
    Context,
    Event,
    IdempotencyConflict,
    Reject,
    Retry,
    StreamlibError,
)
from streamlib.errors import DeclarationError
from tests.helpers.delivering import burst, dead_letters, running, settings


class Quote(Command):
    amount: Decimal


class Other(Command):
    amount: Decimal


class Quoted(Event):
    amount: Decimal


def shop(url: str, **worker: Any) -> tuple[App, list[Quote]]:
    """An app whose Quote doubles an amount, and the runs of its handler."""
    app = App("shop", settings=settings(url, **worker))
    runs: list[Quote] = []

    @app.command_handler(retry=Retry(max_attempts=3, base=0.001))
    async def quote(command: Quote, ctx: Context) -> Decimal:
        runs.append(command)
        if command.amount < 0:
            raise Reject("negative amount")
        if command.amount == 0:
            raise ValueError("no amount")
        return command.amount * 2

    return app, runs


async def test_a_dispatched_command_is_answered_by_what_its_handler_returned(redis_url: str) -> None:
    app, runs = shop(redis_url)
    async with app:
        assert await app.dispatch(Quote(amount=Decimal("1.50"))) == Answer(Decimal("3.00"))
        assert await app.dispatch(Quote(amount=Decimal("1.50"))) == Answer(Decimal("3.00"))
        with pytest.raises(Reject, match="negative amount"):
            await app.dispatch(Quote(amount=Decimal(-1)))
    assert len(runs) == 3  # without a key each is a request of its own


async def test_the_same_key_gives_the_same_answer_and_runs_once(redis_url: str, client: Any) -> None:
    app, runs = shop(redis_url)
    async with app:
        answers = [await app.dispatch(Quote(amount=Decimal(2)), idempotency_key="req-1") for _ in range(3)]
        assert await app.dispatch(Quote(amount=Decimal(2)), idempotency_key="req-2") == Answer(Decimal(4))
    async with shop(redis_url)[0] as elsewhere:
        answers.append(await elsewhere.dispatch(Quote(amount=Decimal(2)), idempotency_key="req-1"))
    assert answers == [Answer(Decimal(4))] * 4
    assert len(runs) == 2
    assert 0 < client.pttl("{shop-commands}:cmd:req-1") <= 3_600_000


async def test_at_the_same_time_too_one_answer_stands_for_all(redis_url: str) -> None:
    """Without an aggregate the handler may run more than once then: it has no effects, and the first answer counts."""
    app = App("shop", settings=settings(redis_url))
    numbers = iter(range(100))

    @app.command_handler
    async def quote(command: Quote) -> int:
        await asyncio.sleep(0)
        return next(numbers)

    async with app:
        dispatched = (app.dispatch(Quote(amount=Decimal(1)), idempotency_key="req-1") for _ in range(20))
        answers = await asyncio.gather(*dispatched)
    assert len({answer.value for answer in answers}) == 1


async def test_a_key_that_has_answered_another_command_is_a_conflict(redis_url: str) -> None:
    app, runs = shop(redis_url)
    async with app:
        await app.dispatch(Quote(amount=Decimal(2)), idempotency_key="req-1")
        with pytest.raises(IdempotencyConflict, match=r"'req-1' has answered a Quote of another content"):
            await app.dispatch(Quote(amount=Decimal(3)), idempotency_key="req-1")
    assert len(runs) == 1


async def test_what_raises_is_not_remembered(redis_url: str, client: Any) -> None:
    """A key keeps answers: a request that was refused may be made again, when the world has changed."""
    app = App("shop", settings=settings(redis_url))
    refused = [True]

    @app.command_handler
    async def quote(command: Quote) -> str:
        if refused[0]:
            raise ValueError("closed")
        return "open"

    async with app:
        with pytest.raises(ValueError, match="closed"):
            await app.dispatch(Quote(amount=Decimal(1)), idempotency_key="req-1")
        assert client.exists("{shop-commands}:cmd:req-1") == 0
        refused[0] = False
        assert await app.dispatch(Quote(amount=Decimal(1)), idempotency_key="req-1") == Answer("open")


async def test_a_handler_that_runs_too_long_is_ended(redis_url: str) -> None:
    app = App("shop", settings=settings(redis_url))

    @app.command_handler(timeout=0.05)
    async def quote(command: Quote) -> None:
        await asyncio.Event().wait()

    async with app:
        with pytest.raises(TimeoutError, match=r"Quote: .* ran for more than its timeout of 0.05 s"):
            await app.dispatch(Quote(amount=Decimal(1)))


async def test_the_lifespan_is_entered_once_for_all_commands_and_left_when_the_app_closes(redis_url: str) -> None:
    app = App("shop", settings=settings(redis_url))
    life: list[str] = []

    @app.lifespan
    async def resources(app: App) -> AsyncIterator[dict[str, Any]]:
        life.append("opened")
        yield {"rate": Decimal(3)}
        life.append("closed")

    @app.command_handler
    async def quote(command: Quote, ctx: Context) -> Decimal:
        return command.amount * Decimal(ctx.state["rate"])

    async with app:
        assert life == []
        dispatched = [app.dispatch(Quote(amount=Decimal(n))) for n in (1, 2)]
        assert [answer.value for answer in await asyncio.gather(*dispatched)] == [3, 6]
        async with running(app):
            await (await app.send(Quote(amount=Decimal(3)))).wait_for(10)
        assert life == ["opened"]
    assert life == ["opened", "closed"]


# -- through the stream


async def test_a_sent_command_runs_in_a_worker_and_its_ticket_waits_for_the_answer(redis_url: str) -> None:
    app, runs = shop(redis_url)
    async with app, running(app):
        ticket = await app.send(Quote(amount=Decimal(4)))
        assert await ticket.wait_for(10) == Answer(Decimal(8))
        assert await app.wait_for(ticket.id, 1) == Answer(Decimal(8))
        assert ticket.position.topic == "shop-commands"
    assert len(runs) == 1


async def test_the_same_key_sent_and_dispatched_is_one_request(redis_url: str) -> None:
    app, runs = shop(redis_url)
    async with app:
        tickets = [await app.send(Quote(amount=Decimal(4)), idempotency_key="req-1") for _ in range(3)]
        assert await burst(app) == 0
        assert [await ticket.wait_for(1) for ticket in tickets] == [Answer(Decimal(8))] * 3
        assert await app.dispatch(Quote(amount=Decimal(4)), idempotency_key="req-1") == Answer(Decimal(8))
    assert len(runs) == 1


async def test_a_sent_command_that_fails_for_good_tells_whoever_waits(redis_url: str, client: Any) -> None:
    app, runs = shop(redis_url)
    async with app:
        refused = await app.send(Quote(amount=Decimal(-1)))
        failing = await app.send(Quote(amount=Decimal(0)))
        assert await burst(app) == 0
        with pytest.raises(CommandFailed, match=rf"Quote {refused.id}: Reject: negative amount"):
            await refused.wait_for(1)
        with pytest.raises(CommandFailed, match="ValueError: no amount"):
            await failing.wait_for(1)
    assert len(runs) == 1 + 3
    assert [letter["id"] for letter in dead_letters(client, "shop-commands", "commands")] == [refused.id, failing.id]


async def test_a_failed_command_that_is_replayed_gets_its_answer_after_all(redis_url: str) -> None:
    app = App("shop", settings=settings(redis_url))
    broken = [True]

    @app.command_handler(retry=Retry(max_attempts=1))
    async def quote(command: Quote) -> str:
        if broken[0]:
            raise ValueError("broken")
        return "mended"

    async with app:
        ticket = await app.send(Quote(amount=Decimal(1)))
        assert await burst(app) == 0
        with pytest.raises(CommandFailed):
            await ticket.wait_for(1)
        broken[0] = False
        assert await app.dispatch(Quote(amount=Decimal(1)), idempotency_key=ticket.id) == Answer("mended")
        assert await ticket.wait_for(1) == Answer("mended")


async def test_no_worker_no_answer(redis_url: str) -> None:
    app, _ = shop(redis_url)
    async with app:
        ticket = await app.send(Quote(amount=Decimal(1)))
        with pytest.raises(TimeoutError, match=r"no answer after 0.02 s; is a worker of group 'commands'"):
            await ticket.wait_for(0.02)


# -- bad input: nothing is written


async def test_a_command_without_a_handler(redis_url: str, client: Any) -> None:
    app, _ = shop(redis_url)
    async with app:
        before = client.keys()
        for refused in (app.dispatch(Other(amount=Decimal(1))), app.send(Other(amount=Decimal(1)))):
            with pytest.raises(DeclarationError, match=r"Other has no handler here.*handlers of: Quote"):
                await refused
        assert client.keys() == before


async def test_an_answer_that_cannot_be_stored_and_ctx_publish_are_refused(redis_url: str, client: Any) -> None:
    app = App("shop", settings=settings(redis_url))
    topic = app.topic("quotes", Quoted)

    @app.command_handler
    async def quote(command: Quote) -> Decimal:
        return "many"  # type: ignore[return-value]

    @app.command_handler
    async def other(command: Other, ctx: Context) -> None:
        ctx.publish(topic, Quoted(amount=command.amount))

    async with app:
        with pytest.raises(StreamlibError, match=r"quote returned str, .*nothing was saved"):
            await app.dispatch(Quote(amount=Decimal(1)), idempotency_key="req-1")
        with pytest.raises(StreamlibError, match=r"has used ctx\.publish"):
            await app.dispatch(Other(amount=Decimal(1)), idempotency_key="req-2")
        assert client.keys("*:cmd:*") == []


def test_declarations_that_are_refused() -> None:
    app = App("shop")

    @app.command_handler
    async def first(command: Quote) -> None: ...

    async def second(command: Quote) -> None: ...

    def plain(command: Quote) -> None: ...

    async def of_an_event(event: Quoted) -> None: ...

    async def of_two(command: Quote | Other) -> None: ...

    async def with_three(command: Quote, ctx: Context, more: int) -> None: ...

    async def unstorable(command: Other) -> App:
        return app

    for handler, why in (
        (second, r"Quote is handled by .*first and by .*second"),
        (plain, "must be `async def`"),
        (of_an_event, "the one command that it handles"),
        (of_two, "the one command that it handles"),
        (with_three, r"must take \(command\) or \(command, ctx\)"),
        (unstorable, "its answer cannot be stored"),
    ):
        with pytest.raises(DeclarationError, match=why):
            app.command_handler(handler)
    with pytest.raises(DeclarationError, match="Quote is a Command, which lies on the app's own topic"):
        app.topic("quotes", Quote)
