"""Measures what one event costs: `python -m benchmarks.per_event [--events N] [--rounds K] [--json] [--shares]`.

Starts a private server, then in every round each case once, each in a fresh process on an empty database, in an order
that rotates from round to round. Machines are noisy: compare the ratios, which are taken within a round.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import redis

from benchmarks.cases import CONSUMING, PUBLISHING, STREAM, entry
from streamlib.embedded import open_embedded

ROOT = Path(__file__).parents[1]
AGAINST = {"streamlib": ("loop", "loop_sync", "pipeline"), "publish_many": ("xadd",)}
Run = dict[str, Any]
CASE_S = 300


def fill(client: redis.Redis, events: int) -> None:
    """An empty database with `events` entries in the stream."""
    client.flushall()
    for start in range(0, events, 1000):
        with client.pipeline(transaction=False) as batch:
            for number in range(start, min(start + 1000, events)):
                batch.execute_command("XADD", STREAM, "*", *entry(number))  # type: ignore[no-untyped-call]
            batch.execute()


def run_case(client: redis.Redis, url: str, case: str, events: int, how: str = "") -> Run:
    """One case in a process of its own, and what the server spent on it."""
    fill(client, 0 if case in PUBLISHING else events)
    client.config_resetstat()
    command = [sys.executable, "-m", "benchmarks.cases", case, url, str(events), how]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=CASE_S)
    run: Run = json.loads(done.stdout)
    run["server"] = server_us(client, events)
    return run


def server_us(client: redis.Redis, events: int) -> dict[str, float]:
    """Microseconds of the server per event, by command; those of a script are its own and those of its calls."""
    stats: Any = client.info("commandstats")
    names = {"cmdstat_evalsha", "cmdstat_eval", "cmdstat_xreadgroup"}
    if not names & {"cmdstat_evalsha"} & set(stats):
        names |= {"cmdstat_set", "cmdstat_xack", "cmdstat_xadd"}
    return {name[8:]: stats[name]["usec"] / events for name in sorted(names & set(stats))}


def measure(events: int, rounds: int) -> list[list[Run]]:
    """The runs of every round."""
    cases = [*CONSUMING, *PUBLISHING]
    with tempfile.TemporaryDirectory() as directory, open_embedded(Path(directory)) as server:
        client = redis.Redis.from_url(server.url)
        run_case(client, server.url, "streamlib", min(events, 1000))  # warms the page cache
        found = []
        for number in range(rounds):
            turn = number % len(cases)
            found.append([run_case(client, server.url, case, events) for case in cases[turn:] + cases[:turn]])
        client.close()
    return found


def measure_shares(events: int) -> Run:
    """One sampled run of the worker."""
    with tempfile.TemporaryDirectory() as directory, open_embedded(Path(directory)) as server:
        client = redis.Redis.from_url(server.url)
        run = run_case(client, server.url, "streamlib", events, "sampled")
        client.close()
    return run


def summary(rounds: Sequence[Sequence[Run]], events: int) -> list[Run]:
    """Per case: median events per second and CPU per event, and the ratios within rounds."""
    by_round = [{run["case"]: run for run in runs} for runs in rounds]
    table = []
    for case in (*CONSUMING, *PUBLISHING):
        runs = [found[case] for found in by_round]
        row: Run = {
            "case": case,
            "events_per_second": round(median(events / run["seconds"] for run in runs)),
            "cpu_us_per_event": round(median(run["cpu_seconds"] for run in runs) / events * 1e6, 1),
            "server_us_per_event": round(median(sum(run["server"].values()) for run in runs), 1),
            "times_as_fast_as": {},
        }
        for other in AGAINST.get(case, ()):
            ratios = sorted(found[other]["seconds"] / found[case]["seconds"] for found in by_round)
            row["times_as_fast_as"][other] = {
                "median": round(median(ratios), 2), "least": round(ratios[0], 2), "most": round(ratios[-1], 2),
            }  # fmt: skip
        table.append(row)
    return table


def show(table: Sequence[Run]) -> None:
    print(f"{'case':<14}{'events/s':>10}{'CPU us/event':>14}{'server us/event':>17}")
    for row in table:
        print(
            f"{row['case']:<14}{row['events_per_second']:>10,}{row['cpu_us_per_event']:>14}"
            f"{row['server_us_per_event']:>17}"
        )
    for row in table:
        for other, ratio in row["times_as_fast_as"].items():
            print(f"{row['case']} is {ratio['median']} times as fast as {other} ({ratio['least']} to {ratio['most']})")


def show_shares(run: Run, events: int) -> None:
    print(f"\nworker: {run['cpu_seconds'] / events * 1e6:.1f} us of CPU per event, sampled:")
    for name, share in run["shares"].items():
        print(f"{share:>6.1%}  {name}")
    for command, spent in run["server"].items():
        print(f"server: {spent:.1f} us per event in {command}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.per_event", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print every number as JSON")
    parser.add_argument("--shares", action="store_true", help="say too where the worker's time goes")
    given = parser.parse_args()
    rounds = measure(given.events, given.rounds)
    table = summary(rounds, given.events)
    shares = measure_shares(given.events) if given.shares else {}
    if given.json:
        print(json.dumps({"events": given.events, "table": table, "rounds": rounds, "shares": shares}))
        return
    show(table)
    if shares:
        show_shares(shares, given.events)


if __name__ == "__main__":
    main()
