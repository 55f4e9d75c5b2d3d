"""Commands under attack: repeats, mixed-up keys, handlers that do odd things, resources that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import pytest

from streamlib import (
    Aggregate,
    Answer,
    App,
    Command,
    CommandFailed,
    Context,
    Event,
    IdempotencyConflict,
    Repository,
    Retry,
    StreamlibError,
    applies,
)
from streamlib.errors import DeclarationError, NotConfirmed, PayloadTooLarge, PublishError
from streamlib.redisio.answers import digest_of
from streamlib.settings import LimitSettings, RedisSettings
from tests.helpers.delivering import burst, settings
from tests.helpers.servers import RedisProc


class Paid(Event):
    account_id: str
    amount: Decimal


class Account(Aggregate):
    balance: Decimal = Decimal(0)

    def pay(self, amount: Decimal) -> None:
        self.record(Paid(account_id=self.id, amount=amount))

    @applies(Paid)
    def _on_paid(self, event: Paid) -> None:
        self.balance += event.amount


class Pay(Command):
    account_id: str
    amount: Decimal


class Report(Command):
    tags: frozenset[str] = frozenset()
    limits: dict[str, float] = {}  # noqa: RUF012 - msgspec copies it


def bank(url: str) -> tuple[App, Repository[Account]]:
    app = App("bank", settings=settings(url))
    return app, app.repository(Account, app.topic("accounts", Paid, key="account_id"))


# -- repeats


@pytest.mark.parametrize("how", ["task group", "gather", "swallowed", "wrapped"])
async def test_a_repeat_is_answered_whatever_the_handler_makes_of_its_end(
    redis_url: str, client: Any, how: str
) -> None:
    app, accounts = bank(redis_url)

    async def loaded(account_id: str) -> Account:
        if how == "task group":
            async with asyncio.TaskGroup() as group:
                loads = [group.create_task(accounts.load_or_new(one)) for one in (account_id, "other")]
            return loads[0].result()
        if how == "gather":
            found = await asyncio.gather(accounts.load_or_new(account_id), return_exceptions=True)
            return found[0] if isinstance(found[0], Account) else Account("elsewhere")
        try:
            return await accounts.load_or_new(account_id)
        except BaseException as error:
            if how == "wrapped":
                raise RuntimeError("could not load") from error
            return Account("elsewhere")

    @app.command_handler
    async def pay(command: Pay) -> Decimal:
        account = await loaded(command.account_id)
        account.pay(command.amount)
        await accounts.save(account)
        return account.balance

    async with app:
        first = await app.dispatch(Pay(account_id="a", amount=Decimal(5)), idempotency_key="k")
        await app.dispatch(Pay(account_id="a", amount=Decimal(1)))
        client.delete("{bank-commands}:cmd:k")
        assert await app.dispatch(Pay(account_id="a", amount=Decimal(5)), idempotency_key="k") == first
        assert (await accounts.load("a")).balance == 6
        assert not await accounts.exists("elsewhere")


async def test_the_order_within_sets_and_mappings_makes_no_other_command() -> None:
    tags = [f"tag-{n}" for n in range(50)]
    one = Report(tags=frozenset(tags), limits={"a": 1.0, "b": 2.0})
    other = Report(tags=frozenset(reversed(tags)) | frozenset(tags), limits={"b": 2, "a": 1})
    assert digest_of(one) == digest_of(other)
    assert digest_of(one) != digest_of(Report(tags=frozenset(tags), limits={"a": 1.0, "b": 2.5}))


async def test_a_ticket_of_another_command_under_the_same_key_gets_a_conflict_not_the_answer(redis_url: str) -> None:
    app, accounts = bank(redis_url)

    @app.command_handler
    async def pay(command: Pay) -> Decimal:
        account = await accounts.load_or_new(command.account_id)
        account.pay(command.amount)
        await accounts.save(account)
        return account.balance

    async with app:
        first = await app.send(Pay(account_id="a", amount=Decimal(5)), idempotency_key="k")
        again = await app.send(Pay(account_id="a", amount=Decimal(5)), idempotency_key="k")
        other = await app.send(Pay(account_id="a", amount=Decimal(500)), idempotency_key="k")
        assert await burst(app) == 0
        assert await first.wait_for(1) == await again.wait_for(1)
        with pytest.raises(IdempotencyConflict, match="'k' has answered a Pay of another content"):
            await other.wait_for(1)
        assert (await accounts.load("a")).balance == 5


async def test_a_command_that_cannot_be_encoded_is_refused_as_when_it_is_sent(redis_url: str, client: Any) -> None:
    app, _ = bank(redis_url)
    runs: list[Pay] = []

    @app.command_handler
    async def pay(command: Pay) -> None:
        runs.append(command)

    async with app:
        for refused in (app.dispatch, app.send):
            with pytest.raises(PublishError, match="Pay cannot be encoded"):
                await refused(Pay(account_id="\ud800", amount=Decimal(1)), idempotency_key="k")
        assert client.keys("*:cmd:*") == []
    assert runs == []


# -- handlers


async def test_a_task_that_outlives_its_command_is_refused_not_ignored(redis_url: str) -> None:
    """Its save would wait for a handler that has returned: it would never take place, and nobody would know."""
    app, accounts = bank(redis_url)
    ended, tasks = asyncio.Event(), []

    @app.command_handler
    async def pay(command: Pay) -> None:
        async def later() -> None:
            await ended.wait()
            account = await accounts.load_or_new(command.account_id)
            account.pay(command.amount)
            await accounts.save(account)

        tasks.append(asyncio.create_task(later()))

    async with app:
        await app.dispatch(Pay(account_id="a", amount=Decimal(5)))
        ended.set()
        with pytest.raises(StreamlibError, match="the command that started this task has ended"):
            await tasks[0]


async def test_a_command_within_a_command_is_refused(redis_url: str, client: Any) -> None:
    """It would be saved although the outer one fails, and again whenever the outer one runs again."""
    app, accounts = bank(redis_url)

    @app.command_handler
    async def pay(command: Pay) -> None:
        await accounts.save(paid(command))

    @app.command_handler
    async def report(command: Report) -> None:
        await app.dispatch(Pay(account_id="a", amount=Decimal(1)))

    def paid(command: Pay) -> Account:
        account = Account(command.account_id)
        account.pay(command.amount)
        return account

    async with app:
        with pytest.raises(StreamlibError, match=r"Pay is dispatched by the handler of another command.*app\.send"):
            await app.dispatch(Report())
        assert client.xlen("accounts") == 0


async def test_an_answer_above_the_limit_is_refused_before_anything_is_written(redis_url: str, client: Any) -> None:
    app, accounts = bank(redis_url)

    @app.command_handler
    async def pay(command: Pay) -> str:
        account = await accounts.load_or_new(command.account_id)
        account.pay(command.amount)
        await accounts.save(account)
        return "x" * LimitSettings().payload_bytes

    async with app:
        with pytest.raises(PayloadTooLarge, match=r"answer .*limits\.payload_bytes.*nothing was saved"):
            await app.dispatch(Pay(account_id="a", amount=Decimal(1)), idempotency_key="k")
        assert client.xlen("accounts") == 0


# -- what waits for an answer is told


async def test_a_sent_command_that_runs_too_long_tells_whoever_waits(redis_url: str) -> None:
    app = App("bank", settings=settings(redis_url))

    @app.command_handler(timeout=0.05, retry=Retry(max_attempts=2, base=0.001))
    async def pay(command: Pay) -> None:
        await asyncio.Event().wait()

    async with app:
        ticket = await app.send(Pay(account_id="a", amount=Decimal(1)))
        assert await burst(app) == 0
        with pytest.raises(CommandFailed, match=r"ran for more than its timeout of 0\.05 s"):
            await ticket.wait_for(0.1)


async def test_a_failure_whose_text_is_no_unicode_is_told_too(redis_url: str) -> None:
    app = App("bank", settings=settings(redis_url))

    @app.command_handler(retry=Retry(max_attempts=1))
    async def pay(command: Pay) -> None:
        raise ValueError("file \udcff" + "x" * 1_000_000)

    async with app:
        ticket = await app.send(Pay(account_id="a", amount=Decimal(1)))
        assert await burst(app) == 0
        with pytest.raises(CommandFailed, match="ValueError: file ") as failed:
            await ticket.wait_for(0.1)
        assert len(str(failed.value)) < 10_000


# -- resources and declarations


async def test_a_lifespan_that_could_not_open_opens_with_the_next_command_and_closes_once(redis_url: str) -> None:
    app = App("bank", settings=settings(redis_url))
    life: list[str] = []

    @app.lifespan
    async def resources(app: App) -> AsyncIterator[dict[str, Any]]:
        life.append("opening")
        if len(life) == 1:
            raise OSError("no such host")
        yield {"rate": 1}
        life.append("closed")

    @app.command_handler
    async def pay(command: Pay) -> None: ...

    for _ in range(2):
        async with app:
            if not life:
                with pytest.raises(OSError, match="no such host"):
                    await app.dispatch(Pay(account_id="a", amount=Decimal(1)))
            for _ in range(2):
                await app.dispatch(Pay(account_id="a", amount=Decimal(1)))
    assert life == ["opening", "opening", "closed", "opening", "closed"]


async def test_an_app_that_closes_while_its_lifespan_fails_to_open_can_be_opened_again(redis_url: str) -> None:
    app = App("bank", settings=settings(redis_url))
    opening, failing, life = asyncio.Event(), asyncio.Event(), list[str]()

    @app.lifespan
    async def resources(app: App) -> AsyncIterator[dict[str, Any]]:
        if not failing.is_set():
            opening.set()
            await failing.wait()
            raise OSError("no such host")
        life.append("opened")
        yield {"rate": 3}
        life.append("closed")

    @app.command_handler
    async def pay(command: Pay, ctx: Context) -> int:
        return int(ctx.state["rate"])

    async with app:
        dispatched = asyncio.create_task(app.dispatch(Pay(account_id="a", amount=Decimal(1))))
        await opening.wait()
        closed = asyncio.create_task(app.close())
        await asyncio.sleep(0)
        failing.set()
        with pytest.raises(OSError, match="no such host"):
            await dispatched
        await closed
    async with app:
        for _ in range(2):
            assert (await app.dispatch(Pay(account_id="a", amount=Decimal(1)))).value == 3
        assert life == ["opened"]
    assert life == ["opened", "closed"]


def test_an_app_is_used_in_one_event_loop_after_another(redis_url: str) -> None:
    app = App("bank", settings=settings(redis_url))

    @app.lifespan
    async def resources(app: App) -> AsyncIterator[dict[str, Any]]:
        await asyncio.sleep(0)
        yield {}

    @app.command_handler
    async def pay(command: Pay) -> str:
        return command.account_id

    async def use() -> list[Answer]:
        async with app:
            return await asyncio.gather(*(app.dispatch(Pay(account_id=f"{n}", amount=Decimal(1))) for n in range(5)))

    for _ in range(3):
        assert [answer.value for answer in asyncio.run(use())] == ["0", "1", "2", "3", "4"]


async def test_a_lifespan_that_dispatches_is_told_so(redis_url: str) -> None:
    """The command would wait for the lifespan, and the lifespan for the command."""
    app = App("bank", settings=settings(redis_url))

    @app.lifespan
    async def resources(app: App) -> AsyncIterator[dict[str, Any]]:
        await app.dispatch(Pay(account_id="a", amount=Decimal(1)))
        yield {}

    @app.command_handler
    async def pay(command: Pay) -> None: ...

    async with app:
        with pytest.raises(StreamlibError, match="lifespan"):
            async with asyncio.timeout(5):
                await app.dispatch(Pay(account_id="a", amount=Decimal(1)))


def test_a_topic_called_like_that_of_the_commands_is_not_replaced() -> None:
    app = App("bank")
    app.topic("bank-commands", Paid)

    async def pay(command: Pay) -> None: ...

    with pytest.raises(DeclarationError, match="'bank-commands' is that of the app's commands"):
        app.command_handler(pay)


# -- durability


@pytest.mark.parametrize("how", ["loads", "saves at once"])
async def test_a_repeat_is_no_way_round_the_durability_that_was_not_reached(
    own_server: Callable[..., RedisProc], how: str
) -> None:
    """The answer lies beside events that were never fsynced: to give it would be to confirm them."""
    server = own_server(kind="valkey", aof=True, conf={"appendfsync": "no"})
    app = App("bank", settings=settings(server.url, sections={"redis": RedisSettings(url=server.url, timeout_s=0.5)}))
    accounts = app.repository(Account, app.topic("accounts", Paid, key="account_id", durability="fsync"))

    @app.command_handler
    async def pay(command: Pay) -> Decimal:
        account = await accounts.load_or_new(command.account_id) if how == "loads" else Account(command.account_id)
        account.pay(command.amount)
        await accounts.save(account)
        return account.balance

    async with app:
        for _ in range(3):
            with pytest.raises(NotConfirmed, match="not fsynced"):
                await app.dispatch(Pay(account_id="a", amount=Decimal(5)), idempotency_key="k")
        with server.client() as client:
            assert client.exists("{bank-commands}:cmd:k") == 0
            client.config_set("appendfsync", "always")
        answer = await app.dispatch(Pay(account_id="a", amount=Decimal(5)), idempotency_key="k")
        assert answer == Answer(Decimal(5), (await accounts.history("a"))[-1].position)
        assert (await accounts.load("a")).version == 1
