"""A view is rebuilt under load, the rebuild killed twice, rolled back and forth: `python -m tests.chaos.rebuild`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from msgspec import Struct

from streamlib.codec import NativeCodec
from tests.chaos.rebuild_app import PARTITIONS, TOPIC, VIEW, Balance, Moved, Opened, account_names, accounts, owner_of
from tests.helpers.oracle import assert_no_stray_keys
from tests.helpers.processes import end_process
from tests.helpers.servers import RedisProc
from tests.helpers.waiting import wait_until
from tests.helpers.workers import ROOT, WorkerProc

LEASE_MS = 3_000
KILLS = (0.25, 0.6)
PER_SECOND = 300
ENV = {"STREAMLIB_WORKER_LEASE_MS": str(LEASE_MS), "STREAMLIB_WORKER_BLOCK_MS": "100", "STREAMLIB_REDIS_TIMEOUT_S": "5"}
STREAMS = [f"{TOPIC}.{number}" for number in range(PARTITIONS)]


class Found(Struct, frozen=True, kw_only=True):
    """What came of it."""

    events: int
    written: int
    killed_at: list[int]
    """Events folded when the rebuild was killed."""
    result: dict[str, Any]
    """What the rebuild that came through printed."""
    rows: int
    wrong_live: list[str]
    wrong_kept: list[str]
    """Rows of the new generation, and of the one before, that differ from a recomputation of the topic."""
    asked: int
    waited: int
    wrong_answers: list[str]
    """What readers saw that never was right."""
    seconds: float

    @property
    def exact(self) -> bool:
        return not (self.wrong_live or self.wrong_kept or self.wrong_answers)


class Bench:
    """A server with a topic and a worker that keeps its view; what is started is ended with it."""

    def __init__(self, server: RedisProc, directory: Path, events: int, stack: ExitStack) -> None:
        self.url = server.url
        self.client: Any = stack.enter_context(server.client())
        self.events = events
        self.names = account_names(max(min(events // 100, 10_000), 200))
        self._directory = directory
        self._stack = stack

    def seed(self) -> None:
        """Open every account, then move money; every hundredth event comes twice, under the same id."""
        events: list[tuple[str, Opened | Moved]] = [
            (f"open-{name}", Opened(account=name, owner=owner_of(self.names, name))) for name in self.names
        ]
        numbers = [n - (n % 100 == 99) for n in range(self.events - len(events))]
        events += [
            (f"move-{n}", Moved(account=self.names[1 + n % (len(self.names) - 1)], amount=n % 19 - 9)) for n in numbers
        ]
        for start in range(0, len(events), 1_000):
            with self.client.pipeline(transaction=False) as pipe:
                for event_id, event in events[start : start + 1_000]:
                    message = accounts.spec.message(event, event_id=event_id)
                    fields = accounts.spec.codec.write(message)
                    stream = STREAMS[accounts.spec.partition_of(message)]
                    pipe.xadd(stream, dict(zip(fields[::2], fields[1::2], strict=True)))
                pipe.execute()

    def worker(self) -> WorkerProc:
        worker = WorkerProc("tests.chaos.rebuild_app:app", self.url, cwd=self._directory, env=ENV)
        return self._stack.enter_context(worker).wait_ready()

    def started(self, role: str) -> subprocess.Popen[bytes]:
        """A writer or a reader that is at work."""
        command = [
            sys.executable,
            "-m",
            "tests.chaos.rebuild_app",
            role,
            self.url,
            str(len(self.names)),
            str(PER_SECOND),
        ]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        self._stack.callback(end_process, process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    def rebuild(self, *args: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "streamlib", "rebuild", "tests.chaos.rebuild_app:app", VIEW, "--json", *args]
        process = subprocess.Popen(
            [*command, "--redis", self.url],
            cwd=ROOT,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._stack.callback(end_process, process)
        return process

    def read(self, generation: int) -> int:
        """How many entries a generation has behind it."""
        return sum(int(self.client.hget(f"{{{stream}}}:view:{VIEW}:{generation}", "read") or 0) for stream in STREAMS)

    def added(self) -> int:
        return sum(self.client.xinfo_stream(stream)["entries-added"] for stream in STREAMS)

    def caught_up(self, generation: int) -> bool:
        return all(
            self.client.hget(f"{{{stream}}}:view:{VIEW}:{generation}", "checkpoint")
            == self.client.xinfo_stream(stream)["last-generated-id"]
            for stream in STREAMS
        )

    def wrong_rows(self, generation: int, right: dict[str, dict[bytes, bytes]]) -> list[str]:
        """Ids of rows that are not what they should be, or are there and should not be."""
        stored: dict[str, dict[bytes, bytes]] = {}
        for stream in STREAMS:
            keys = list(self.client.scan_iter(f"{{{stream}}}:view:{VIEW}:{generation}:row:*", count=10_000))
            with self.client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hgetall(key)
                rows = pipe.execute()
            stored |= {key.decode().rpartition(":row:")[2]: row for key, row in zip(keys, rows, strict=True)}
            counted = int(self.client.hget(f"{{{stream}}}:view:{VIEW}:{generation}", "rows"))
            assert counted == len(keys) == self.client.zcard(f"{{{stream}}}:view:{VIEW}:{generation}:rows")
        return sorted(name for name in stored.keys() | right.keys() if stored.get(name) != right.get(name))

    def recomputed(self) -> dict[str, dict[bytes, bytes]]:
        """The rows as a fold of the whole topic, each event id once, without streamlib's projector."""
        rows: dict[str, Balance] = {}
        codec, seen = NativeCodec(), set[bytes]()
        for stream in STREAMS:
            after = "-"
            while entries := self.client.xrange(stream, after, "+", count=10_000):
                for entry_id, fields in entries:
                    if fields[b"id"] in seen:
                        continue
                    seen.add(fields[b"id"])
                    message = codec.read(entry_id.decode(), [part for pair in fields.items() for part in pair])
                    cls = Opened if message.type == "Opened" else Moved
                    event: Any = codec.decode(message, cls)
                    row = rows.get(event.account)
                    if isinstance(event, Opened):
                        row = Balance(account=event.account, owner=event.owner)
                    elif isinstance(event, Moved) and row is not None:
                        row = Balance(
                            account=row.account,
                            owner=row.owner,
                            balance=row.balance + event.amount,
                            moves=row.moves + 1,
                        )
                    assert row is not None
                    rows[event.account] = row
                after = f"({entries[-1][0].decode()}"
        return {
            name: {b"account": name.encode(), b"owner": row.owner.encode(), b"balance": b"%d" % row.balance}
            | {b"moves": b"%d" % row.moves}
            for name, row in rows.items()
        }


def run(directory: Path, events: int, server_kind: str = "valkey") -> Found:
    """Rebuild under load with two kills, go back and forth, delete the old generation; every answer is checked."""
    began = time.monotonic()
    with ExitStack() as stack:
        server = stack.enter_context(RedisProc(server_kind, directory / "server"))
        bench = Bench(server, directory, events, stack)
        bench.seed()
        bench.worker()
        wait_until(lambda: bench.caught_up(1), 600, every=0.2, what="the live generation has all events")
        writer, reader = bench.started("writer"), bench.started("reader")
        killed_at = [_killed(bench, share) for share in KILLS]
        result = _ended(bench.rebuild("--yes"), 900)  # rows that change all the time may not be comparable
        assert result["equal"], result
        for _ in range(2):
            _ended(bench.rebuild("--rollback", "--yes"), 60)
            time.sleep(2.5)  # readers follow
        written = _said(writer)
        said = _said(reader)
        wait_until(lambda: bench.caught_up(1) and bench.caught_up(2), 120, what="both generations have all events")
        right = bench.recomputed()
        wrong = {generation: bench.wrong_rows(generation, right) for generation in (1, 2)}
        late = bench.started("reader")
        _ended(bench.rebuild("--drop", "--yes"), 120)
        said_late = _said(late)
        assert not list(bench.client.scan_iter(f"*:view:{VIEW}:1*", count=10_000))
        assert_no_stray_keys(bench.client)
    return Found(
        events=events,
        written=written["written"],
        killed_at=killed_at,
        result=result,
        rows=len(right),
        wrong_live=wrong[2],
        wrong_kept=wrong[1],
        asked=said["asked"] + said_late["asked"],
        waited=said["waited"] + said_late["waited"],
        wrong_answers=[*said["wrong"], *said_late["wrong"]],
        seconds=time.monotonic() - began,
    )


def _killed(bench: Bench, share: float) -> int:
    """A rebuild that is killed when it has folded this share; how far it had come."""
    process = bench.rebuild()
    wait_until(lambda: bench.read(2) >= share * bench.events, 600, every=0.01, what=f"{share:.0%} are folded")
    process.kill()
    process.communicate()
    return bench.read(2)


def _ended(process: subprocess.Popen[bytes], timeout_s: float) -> dict[str, Any]:
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, err.decode()[-3000:]
    told: dict[str, Any] = json.loads(out)
    return told


def _said(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    process.terminate()
    out, _ = process.communicate(timeout=60)
    told: dict[str, Any] = json.loads(out)
    return told


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIB_")}
    return inherited | ENV


def table(found: Found) -> str:
    killed = " and ".join(f"{n:,}" for n in found.killed_at)
    lines = [
        f"{found.events:,} events, {found.written:,} more meanwhile; {found.rows:,} rows; {found.seconds:.0f} s in all",
        f"killed after {killed} events; then: {json.dumps(found.result)}",
        f"rows that differ from a recomputation: {len(found.wrong_live)} new, {len(found.wrong_kept)} kept",
        f"asked {found.asked:,} times, waited for {found.waited:,} own writes: {len(found.wrong_answers)} are wrong",
        *found.wrong_answers,
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--server", default="valkey")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = run(Path(directory), args.events, args.server)
    sys.stdout.write(table(found) + "\n")
    return 0 if found.exact else 1


if __name__ == "__main__":
    sys.exit(main())
