"""Measures streamlib, plain redis-py and other libraries: `python -m benchmarks [CASE...]`."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import redis

from benchmarks import figures, harness
from benchmarks.case import Case, Size
from benchmarks.cases import CASES, beside, chosen, installed
from benchmarks.peer_cases import peers
from streamlib.bench.figures import lines
from tests.helpers.servers import SERVER_KINDS

PACKAGES = ("streamlib", "redis", "hiredis", "msgspec", "uvloop", "prometheus-client")
LARGE, MOST_PILE = 10_000_000, 1_000_000
SAMPLES_PER_S = 500


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.list:
        known = [*CASES.values(), *peers(pythons(given.peer_python))]
        print("\n".join(f"{case.name:<28}{case.about}" for case in known))
        return 0
    try:
        others = peers(pythons(given.peer_python))
        all_names = [case.name for case in [*CASES.values(), *(others if given.peers else ())] if installed(case)]
        cases = chosen(given.case or all_names, others)
        if given.beside:
            cases = beside(cases, given.beside.resolve())
        size = _size(given)
        with harness.server(given.server) as server, server.client(timeout_s=300) as client:
            if given.profile:
                _profile(CASES[given.profile], size, client, server.url, Path(given.svg))
            else:
                _measure(cases, given, size, client, server.url)
    except (LookupError, harness.WrongResult) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("case", nargs="*", help="a case, or the first word of several; all when none is named")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=20_000, help="events of each run that the clock sees")
    parser.add_argument("--backlog", type=int, default=200_000, help="events ahead in flat_backlog and memory")
    parser.add_argument("--large", action="store_true", help="the same as --backlog 10000000")
    parser.add_argument("--server", choices=SERVER_KINDS, default="valkey")
    parser.add_argument("--peers", action="store_true", help="with all cases, other libraries too")
    parser.add_argument(
        "--peer-python",
        action="append",
        default=[],
        metavar="NAMES=PATH",
        help="the Python of peers, for example saq,arq=...",
    )
    parser.add_argument("--beside", type=Path, metavar="DIR", help="measure another checkout in the same rounds")
    parser.add_argument("--json", action="store_true", help="print every number as JSON")
    parser.add_argument("--profile", metavar="CASE", choices=list(CASES), help="run one case under py-spy instead")
    parser.add_argument("--svg", metavar="FILE", default="profile.svg", help="where its flame graph goes")
    return parser


def pythons(given: list[str]) -> dict[str, str]:
    """Peer -> path of its Python. Raises LookupError where "=" is missing."""
    found: dict[str, str] = {}
    for words in given:
        names, equals, path = words.partition("=")
        if not equals:
            raise LookupError(f"--peer-python {words}: write NAMES=PATH, for example saq,arq=/somewhere/bin/python")
        found |= dict.fromkeys(names.split(","), path)
    return found


def _size(given: argparse.Namespace) -> Size:
    backlog = LARGE if given.large else given.backlog
    return Size(events=given.events, warm=max(given.events // 10, 1), backlog=backlog, pile=min(backlog, MOST_PILE))


def _measure(cases: list[Case], given: argparse.Namespace, size: Size, client: redis.Redis, url: str) -> None:
    about = machine(client)
    rounds = harness.measure(cases, given.rounds, size, client, url, lambda line: print(line, file=sys.stderr))
    table = lines(rounds, {case.name: case.base for case in cases})
    if given.json:
        told = {"about": about, "size": msgspec.to_builtins(size), "table": msgspec.to_builtins(table)}
        print(json.dumps(told | {"rounds": rounds}))
        return
    print(f"{', '.join(f'{name} {value}' for name, value in about.items())}; {given.rounds} rounds")
    print(figures.text(table))


def machine(client: redis.Redis) -> dict[str, Any]:
    """Date, machine and versions."""
    server: Any = client.info("server")
    name = server.get("server_name", "redis")
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "python": platform.python_version(),
        name: server.get(f"{name}_version", server["redis_version"]),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }


def _cpu() -> str:
    """The processor as Linux calls it, else its kind."""
    about = Path("/proc/cpuinfo")
    if about.exists():
        for line in about.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _profile(case: Case, size: Size, client: redis.Redis, url: str, svg: Path) -> None:
    py_spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if py_spy is None:
        raise LookupError("py-spy is not installed; it comes with: pip install -e '.[bench]'")
    wrapper = [py_spy, "record", "--rate", str(SAMPLES_PER_S), "--output", str(svg), "--"]
    harness.run_case(case, size, client, url, wrapper)
    print(f"{case.name}: flame graph in {svg}")


if __name__ == "__main__":
    sys.exit(main())
