"""What producers, writers of aggregates, readers and operators send, struck, and then done again as they would.

Each deed is a process with one task, which whoever asked for it repeats until it ends well. While it stands still
somebody else has it done, and it goes on when it wakes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from signal import SIGKILL
from typing import Any

import msgspec
from msgspec import Struct

from tests.chaos.conftest import LEASE_MS
from tests.chaos.sweep_case import RECOVERS_S, Case, strike
from tests.chaos.sweep_shop import DEPOSITS, ITEMS, OWNERS, Row, Shop, item
from tests.helpers.delivering import burst, running
from tests.helpers.oracle import assert_no_stray_keys
from tests.helpers.proxy import ChaosProxy
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import eventually, wait_until
from tests.helpers.workers import WorkerProc

OF_ONE = range(0, ITEMS, len(OWNERS))
"""The items of the first owner."""
ENDED_WELL, NO_REDIS, TOLD = 0, 3, (1, 4, 5, 6)
"""Exit codes of the command line: who loses Redis asks again, who is told that it is done already, or being done by
another, asks no more."""


class Stage(Struct, frozen=True):
    """An empty server, and what is left of the deed's processes in a directory."""

    url: str
    client: Any
    directory: Path
    numbers: Iterator[int]

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def new_file(self) -> str:
        return str(self.directory / f"archive-{next(self.numbers)}.jsonl")

    def noted(self, word: str) -> Counter[tuple[str, str]]:
        """(process, number) of what the roles noted under this word."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return Counter((pid, number) for pid, found, number in lines if found == word)

    def entries(self, stream: str) -> list[dict[bytes, bytes]]:
        return [fields for _, fields in self.client.xrange(stream)]


class Deed(Struct, frozen=True):
    """`prepare` sets the stage, `words` are the command's, `check` is the oracle once it ended well; `sends` are the
    scripts that it is struck at."""

    sends: tuple[str, ...]
    words: Callable[[Stage, str], Sequence[str]]
    check: Callable[[Stage], None]
    prepare: Callable[[Stage], None] = lambda stage: None


def run(case: Case, server: RedisProc, directory: Path) -> float:
    """Seconds from the fault until the deed was done. Raises AssertionError when a promise did not hold."""
    deed = DEEDS[case.sender]
    with server.client() as client, ChaosProxy(server.url) as road:
        client.flushall()
        directory.mkdir(exist_ok=True)
        stage = Stage(server.url, client, directory, count())
        stage.log.write_text("")
        deed.prepare(stage)
        caught = road.catch(case.words, case.caught_at, case.nth)
        codes: list[int] = []

        def again() -> None:
            with _process(deed, stage, stage.url) as one:
                codes.append(one.wait(RECOVERS_S))

        with _process(deed, stage, road.url) as struck:
            wait_until(
                lambda: caught.is_set() or not struck.running, RECOVERS_S, what=f"{case}: it is sent, or it ends"
            )
            assert caught.is_set(), f"{case}: it was never sent"
            began_s = time.monotonic()
            strike(case, road, struck, again)
            codes.append(struck.wait(RECOVERS_S))
            assert codes[-1] in _expected(case), struck.log()[-4000:]
            assert "Traceback" not in struck.log()
        if ENDED_WELL not in codes:
            again()
            assert codes[-1] in (ENDED_WELL, *TOLD)
        took_s = time.monotonic() - began_s
        deed.check(stage)
        assert_no_stray_keys(client)
    return took_s


def _expected(case: Case) -> Sequence[int]:
    """How the struck process may end; one that stood still finds that another did it meanwhile."""
    if case.fault == "kill":
        return [-SIGKILL]
    return [ENDED_WELL, NO_REDIS, *(TOLD if case.is_frozen else ())]


def _process(deed: Deed, stage: Stage, url: str) -> WorkerProc:
    command = [sys.executable, "-m", *deed.words(stage, url)]
    env = {"STREAMLIB_WORKER_LEASE_MS": str(LEASE_MS)}
    return WorkerProc("a deed", url, cwd=stage.directory, command=command, env=env)


def _role(name: str) -> Callable[[Stage, str], Sequence[str]]:
    return lambda stage, url: ("tests.chaos.sweep_shop", name, url, str(stage.log))


def _cli(*words: str) -> Callable[[Stage, str], Sequence[str]]:
    return lambda stage, url: ("streamlib", *words, "--redis", url)


# -- before and after -------------------------------------------------------------------------------------------------


async def _publish(shop: Shop) -> None:
    for n in range(ITEMS):
        await shop.items.publish(item(n), id=f"item-{n}")


def _done_by(*groups: str, mended: bool = True) -> Callable[[Stage], None]:
    """All items published, and these groups have run them, or refused them all."""

    async def prepare(stage: Stage) -> None:
        shop = Shop(stage.url, mended=mended)
        async with shop.app:
            await _publish(shop)
            assert await burst(shop.app, groups) == 0

    return lambda stage: asyncio.run(prepare(stage))


def _halted(stage: Stage) -> None:
    """Items of one owner published, and in the ordered group this key stands still at the first."""

    async def prepare() -> None:
        shop = Shop(stage.url, mended=False)
        async with shop.app:
            for n in OF_ONE:
                await shop.items.publish(item(n), id=f"item-{n}")
            async with running(shop.app, ["o"]):
                await eventually(lambda: b" halted " in (stage.client.hget("{items}:keys:o", OWNERS[0]) or b""))

    asyncio.run(prepare())


def _ran(stage: Stage, group: str) -> list[int]:
    """What a worker runs that refuses nothing."""

    async def work() -> list[int]:
        shop = Shop(stage.url)
        async with shop.app:
            assert await burst(shop.app, [group]) == 0
        return shop.runs

    return asyncio.run(work())


# -- the oracles ------------------------------------------------------------------------------------------------------


def _check_published(stage: Stage) -> None:
    ids = Counter(fields[b"id"].decode() for fields in stage.entries("items"))
    assert ids == Counter(f"item-{n}" for n in range(ITEMS)), "each is stored once, by however many it was sent"
    stored = Counter(
        (fields[b"key"].decode()[1:], str(item["n"])) for fields in stage.entries("plain") for item in [_data(fields)]
    )
    assert set(stored.values()) <= {1}, "a resend never doubles"
    assert set(stage.noted("did")) <= set(stored) <= set(stage.noted("began")), "what was confirmed is there"


def _check_accounts(stage: Stage) -> None:
    stored = Counter((fields[b"key"].decode(), str(_data(fields)["amount"])) for fields in stage.entries("accounts"))
    assert set(stored.values()) == {1}, "each deposit counts once"
    assert {amount for key, amount in stored if key == "a"} == {str(amount) for amount in DEPOSITS}
    edits = {(key[1:], amount) for key, amount in stored if key != "a"}
    assert set(stage.noted("did")) <= edits <= set(stage.noted("began")), "what was confirmed is there"
    for key in {key for key, _ in stored}:
        amounts = [int(amount) for owner, amount in stored if owner == key]
        assert stage.client.llen(f"{{accounts}}:agg:{key}") == len(amounts)
        assert _balance(stage, key) == sum(amounts)


def _balance(stage: Stage, key: str) -> int:
    async def load() -> int:
        shop = Shop(stage.url)
        async with shop.app:
            return int((await shop.bank.load(key)).balance)

    return asyncio.run(load())


def _check_rows(stage: Stage) -> None:
    async def rows() -> list[Row]:
        shop = Shop(stage.url)
        async with shop.app:
            assert [row.owner for row in await shop.board.between("total", 0, 1_000)] == [*OWNERS]
            return list(await shop.board.rows())

    numbers = {owner: [n for n in range(ITEMS) if item(n).owner == owner] for owner in OWNERS}
    assert asyncio.run(rows()) == [Row(owner=owner, items=len(of), total=sum(of)) for owner, of in numbers.items()]


def _check_rebuilt(stage: Stage) -> None:
    _check_rows(stage)
    views = {name.decode(): value.decode() for name, value in stage.client.hgetall("streamlib:views").items()}
    assert views["items:board"] != "1", "it was switched"
    assert "items:board:building" not in views
    there = {key.split(b":")[3].decode() for key in stage.client.scan_iter("{items}:view:board:*", count=1000)}
    assert there == {views["items:board"], views["items:board:kept"]}


def _check_letters(stage: Stage) -> None:
    assert stage.client.xlen("{items}:dead:g") == 0
    assert sorted(_ran(stage, "g")) == list(range(ITEMS)), "each letter came back once"


def _check_range(stage: Stage) -> None:
    assert sorted(_ran(stage, "g")) == list(range(ITEMS)), "each event came again once"
    assert not stage.client.exists("streamlib:replay:items:g"), "the same command would begin anew"


def _check_removed(stage: Stage) -> None:
    assert {row["name"] for row in stage.client.xinfo_groups("items")} == {b"o", b"board"}
    assert not [*stage.client.scan_iter("*}:*:g", count=1000), *stage.client.scan_iter("*}:*:g:*", count=1000)]
    archived = "".join(file.read_text() for file in stage.directory.glob("archive-*.jsonl"))
    assert all(f'"item-{n}"' in archived for n in range(ITEMS)), "what it owed is kept"


def _check_skipped(stage: Stage) -> None:
    letters = [fields[b"id"].decode() for fields in stage.entries("{items}:dead:o")]
    assert letters == [f"item-{OF_ONE[0]}"]
    assert _ran(stage, "o") == [*OF_ONE[1:]], "its successors run, in their order"


def _check_resumed(stage: Stage) -> None:
    assert _ran(stage, "o") == [*OF_ONE]
    assert not stage.client.exists("{items}:dead:o", "{items}:keys:o")


def _data(fields: dict[bytes, bytes]) -> Any:
    return msgspec.json.decode(fields[b"data"])


DEEDS = {
    "produce": Deed(("publish",), _role("produce"), _check_published),
    "deposit": Deed(("append", "read_aggregate", "remember"), _role("deposit"), _check_accounts),
    "read": Deed(("seek",), _role("read"), _check_rows, _done_by("board")),
    "rebuild": Deed(
        ("change_view", "load_rows", "commit"),
        _cli("rebuild", "tests.chaos.sweep_shop:app", "board", "--yes"), _check_rebuilt, _done_by("board"),
    ),
    "dlq replay": Deed(
        ("replay",), _cli("dlq", "replay", "--group", "g", "--yes"), _check_letters, _done_by("g", mended=False)
    ),
    "replay": Deed(
        ("replay_begin", "replay_range", "replay_end"),
        _cli("replay", "--topic", "items", "--group", "g", "--from", "begin", "--yes"), _check_range, _done_by("g"),
    ),
    "groups rm": Deed(
        ("scan",),
        lambda stage, url: _cli("groups", "rm", "items", "g", "--yes", "--archive", stage.new_file())(stage, url),
        _check_removed, _done_by("g", mended=False),
    ),
    "keys skip": Deed(("skip",), _cli("keys", "skip", "items", "o", OWNERS[0], "--yes"), _check_skipped, _halted),
    "keys resume": Deed(("key_state",), _cli("keys", "resume", "items", "o", OWNERS[0]), _check_resumed, _halted),
}  # fmt: skip
