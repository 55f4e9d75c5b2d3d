"""Two versions of an app at once: events of both from producers of both, and what upcasters do to what is stored."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from streamlib import App, Event, FlatCodec, ReadModel, Settings
from streamlib.ops.dead_letters import DeadLetters, Filters
from streamlib.settings import RedisSettings, WorkerSettings
from tests.helpers import deploy_v1, deploy_v2
from tests.helpers.delivering import burst, dead_letters, outcomes, settings
from tests.helpers.deploy_v1 import OrderRow
from tests.helpers.waiting import eventually
from tests.helpers.workers import ROOT, WorkerProc

GROUPS = ("mail", "ledger")
ORDERS = [f"o-{n}" for n in range(8)]

# -- a rolling deploy -----------------------------------------------------------------------------------------------


class Run(msgspec.Struct, frozen=True):
    """One line that a handler wrote."""

    group: str
    app_version: int
    order: str
    n: int
    status: str


def runs(path: Path) -> list[Run]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        Run(group, int(version), order, int(n), status) for group, version, order, n, status in map(str.split, lines)
    ]


def v1(n: int) -> Event:
    return deploy_v1.StatusUpdated(order_id=ORDERS[n % 8], state=f"s{n}", n=n)


def v2(n: int) -> Event:
    return deploy_v2.StatusUpdated(order_id=ORDERS[n % 8], status=f"s{n}", n=n, by="new")


def expected(number: int) -> dict[str, OrderRow]:
    """The view of the first `number` events, by hand."""
    rows: dict[str, OrderRow] = {}
    for order in ORDERS:
        mine = [n for n in range(number) if ORDERS[n % 8] == order]
        last = mine[-1]
        rows[order] = OrderRow(order_id=order, status=f"s{last}", last=last, count=len(mine), total=sum(mine))
    return rows


def handled(path: Path, number: int) -> bool:
    done = runs(path)
    return all({one.n for one in done if one.group == group} == set(range(number)) for group in GROUPS)


@pytest.fixture
def deployed(redis_url: str) -> None:
    """Both releases, as configured in the process that publishes and looks."""
    for app in (deploy_v1.app, deploy_v2.app):
        app.configure(Settings(redis=RedisSettings(url=redis_url), worker=WorkerSettings(lease_ms=1_000)))


async def viewed(number: int) -> bool:
    wanted = expected(number)
    rows = await deploy_v2.view.get_many(list(wanted))
    return rows == list(wanted.values())


@pytest.mark.usefixtures("deployed")
async def test_old_and_new_workers_together_handle_events_of_both_versions(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    log = tmp_path / "runs"
    env = {"RUNS": str(log), "STREAMLIB_WORKER_LEASE_MS": "1000"}

    def worker(release: str) -> WorkerProc:
        return WorkerProc(f"tests.helpers.{release}:app", redis_url, cwd=ROOT, env=env, log_dir=tmp_path)

    async with deploy_v1.app:
        with worker("deploy_v1") as old:
            await deploy_v1.orders.publish_many([v1(n) for n in range(80)])
            await eventually(lambda: handled(log, 80), timeout=60, what="the old release alone")
            async with deploy_v2.app:
                with worker("deploy_v2") as new:
                    new.wait_ready()
                    for n in range(80, 240):  # each order has events of both versions, one after the other
                        await (deploy_v2.orders.publish(v2(n)) if n // 8 % 2 else deploy_v1.orders.publish(v1(n)))
                    await eventually(lambda: handled(log, 240), timeout=120, what="both releases together")
                    await eventually(lambda: viewed(240), timeout=60)
                    assert old.running
                    old.term()
                    assert old.wait() == 0
                    await deploy_v1.orders.publish_many([v1(n) for n in range(240, 280)])  # a producer not yet replaced
                    await deploy_v2.orders.publish_many([v2(n) for n in range(280, 320)])
                    await eventually(lambda: handled(log, 320), timeout=60, what="the new release alone")
                    await eventually(lambda: viewed(320), timeout=60)
                    new.term()
                    assert new.wait() == 0
    _judge(runs(log))
    assert "projection_needs_newer_worker" in old.log(), "the old worker met the new version and left it"
    assert list(client.scan_iter("*:dead:*")) == []


def _judge(done: list[Run]) -> None:
    by_key: dict[str, list[int]] = defaultdict(list)
    for one in done:
        assert one.status == f"s{one.n}", "the value that version 1 calls state"
        if one.group == "ledger":
            by_key[one.order].append(one.n)
    assert {one.app_version for one in done if one.n < 80} == {1}
    written_as_v2 = [one for one in done if 80 <= one.n < 240 and one.n // 8 % 2]
    assert {one.app_version for one in written_as_v2} == {2}
    assert {one.app_version for one in done if one.n >= 240} == {2}
    for order, numbers in by_key.items():
        assert numbers == sorted(numbers), f"the events of {order} came in their order"


# -- an upcaster that fails -----------------------------------------------------------------------------------------


class Moved(Event, version=2):
    account: str
    cents: int


class Balance(ReadModel):
    account: str
    cents: int


def bank(url: str, *, fixed: bool = False) -> App:
    """Version 1 had whole euros, once as the text "many"; the first upcaster does not expect that."""
    app = App("bank", settings=settings(url))
    moves = app.topic("moves", Moved, key="account")
    balances = app.projection("balances", moves, Balance, key="account")

    @app.upcast(Moved, from_version=1)
    def euros_became_cents(data: dict[str, Any]) -> dict[str, Any]:
        euros = data["euros"]
        return {"account": data["account"], "cents": 100 * (7 if fixed and euros == "many" else int(euros))}

    @app.handler(moves, group="audit")
    async def audit(event: Moved) -> None:
        assert event.cents % 100 == 0

    @balances.on(Moved)
    def fold(row: Balance | None, event: Moved) -> Balance:
        return Balance(account=event.account, cents=(row.cents if row else 0) + event.cents)

    return app


def stored(n: int, account: str, **data: Any) -> Any:
    encoded = msgspec.json.encode({"account": account, **data})
    return {"id": f"e-{n}", "type": "Moved", "v": "1", "key": account, "data": encoded}


async def test_an_upcaster_that_raises_sends_its_event_alone_to_the_dead_letters(
    redis_url: str, client: redis.Redis
) -> None:
    app = bank(redis_url)
    async with app:
        for n, euros in enumerate(["1", "many", 3]):
            client.xadd("moves", stored(n, "ann", euros=euros))
        assert await burst(app) == 0
        assert outcomes(app, "audit") == {"ok": 2, "dead": 1}
        assert await app.projections["balances"].get("ann") == Balance(account="ann", cents=400)
    for group in ("audit", "balances"):
        [letter] = dead_letters(client, "moves", group)
        assert (letter["dl-reason"], letter["id"], letter["v"]) == ("schema", "e-1", "1")
        assert "euros_became_cents failed on data of version 1: ValueError: invalid literal" in letter["dl-error"]
        assert "in euros_became_cents" in letter["dl-traceback"], "the line of the upcaster"
        assert msgspec.json.decode(letter["data"]) == {"account": "ann", "euros": "many"}, "as it was stored"


async def test_a_mended_upcaster_reads_what_is_replayed(redis_url: str, client: redis.Redis) -> None:
    broken, mended = bank(redis_url), bank(redis_url, fixed=True)
    async with broken:
        client.xadd("moves", stored(1, "ann", euros="many"))
        assert await burst(broken, ["audit"]) == 0
    async with mended:
        letters = DeadLetters(mended.redis, mended.keys, window_s=3600)
        await letters.replay([found async for found in letters.find(Filters(group="audit"))])
        assert await burst(mended, ["audit"]) == 0
        assert outcomes(mended, "audit") == {"ok": 1}
    assert dead_letters(client, "moves", "audit") == []


# -- copies of older versions ---------------------------------------------------------------------------------------


class Reading(Event, version=2):
    sensor: str
    room: str
    celsius: float


class FirstReading(Event, type_name="Reading"):
    sensor: str
    fahrenheit: float


def to_celsius(data: dict[str, Any]) -> dict[str, Any]:
    return {"sensor": data["sensor"], "room": "hall", "celsius": (float(data["fahrenheit"]) - 32) / 1.8}


@pytest.mark.parametrize("flat", [False, True], ids=["as they are stored", "written anew"])
async def test_a_rekey_copies_older_versions_so_that_they_are_raised_once(
    redis_url: str, client: redis.Redis, flat: bool
) -> None:
    app, seen = App("house", settings=settings(redis_url)), list[Reading]()
    codec = FlatCodec(FirstReading) if flat else None
    readings = app.topic("readings", Reading, key="sensor", codec=codec)
    by_room = app.rekey(readings, key="room", to="by-room")
    app.upcast(Reading, from_version=1)(to_celsius)

    @app.handler(by_room, group="seen")
    async def see(event: Reading) -> None:
        seen.append(event)

    async with app:
        data = msgspec.json.encode({"sensor": "a7", "fahrenheit": 212.0})
        native: Any = {"id": "e-1", "type": "Reading", "v": "1", "key": "a7", "data": data}
        entry: Any = {"sensor": "a7", "fahrenheit": "212"} if flat else native
        client.xadd("readings", entry)
        assert await burst(app) == 0
    assert seen == [Reading(sensor="a7", room="hall", celsius=100.0)]
    copies: Any = client.xrange("by-room")
    assert (copies[0][1][b"v"], copies[0][1][b"key"]) == (b"2" if flat else b"1", b"hall")
