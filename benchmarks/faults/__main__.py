"""Does to each library what happens to workers, and prints what it lost, ran twice or hung on."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from msgspec.structs import replace

from benchmarks.__main__ import pythons
from benchmarks.faults import tables
from benchmarks.faults.cases import FAULTS
from benchmarks.faults.peers import PEERS, Peer
from benchmarks.faults.rig import Rig

_VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        peers = chosen(given.peer, pythons(given.peer_python))
    except LookupError as error:
        print(error, file=sys.stderr)
        return 1
    told = tables.read(given.join) if given.join else measure(peers, given)
    print(tables.markdown(told) if given.markdown else json.dumps(told, indent=1))
    return 0


def measure(peers: list[Peer], given: argparse.Namespace) -> tables.Told:
    """What each fault did to each peer; an AssertionError of the rig is a result too, told by its first line."""
    told: tables.Told = {}
    for peer in peers:
        results: dict[str, list[tables.Result]] = {}
        for fault in given.fault or FAULTS:
            print(f"{peer.name}: {fault}", file=sys.stderr)
            results[fault] = [one(peer, fault, given.keep) for _ in range(given.rounds)]
        told[peer.name] = {"versions": versions(peer), "settings": peer.settings, "faults": results}
    return told


def one(peer: Peer, fault: str, keep: Path | None = None) -> tables.Result:
    """`keep` is a folder for the logs, which else go."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = keep / f"{peer.name}-{fault}" if keep else Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        try:
            with Rig(peer, directory) as rig:
                return {**FAULTS[fault](rig), "took_s": round(time.monotonic() - began)}
        except (AssertionError, RuntimeError) as error:
            return {"could_not_run": str(error).splitlines()[0][:200]}


def versions(peer: Peer) -> dict[str, str]:
    done = subprocess.run([peer.python, "-c", _VERSIONS, *peer.packages], check=True, stdout=subprocess.PIPE)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def chosen(names: list[str], python_of: dict[str, str]) -> list[Peer]:
    """The named peers, or all that are installed here or have a Python of their own. Raises LookupError."""
    if unknown := (set(names) | python_of.keys()) - PEERS.keys():
        raise LookupError(f"no peer {min(unknown)!r}; there are: {', '.join(PEERS)}")
    peers = [replace(peer, python=python_of.get(name, peer.python)) for name, peer in PEERS.items()]
    return [peer for peer in peers if (peer.name in names if names else _installed(peer, python_of))]


def _installed(peer: Peer, python_of: dict[str, str]) -> bool:
    try:
        return peer.name in python_of or bool(importlib.metadata.version(peer.packages[0]))
    except importlib.metadata.PackageNotFoundError:
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("peer", nargs="*", help=f"of {', '.join(PEERS)}; all that are installed when none is named")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="this one only; may be given often")
    parser.add_argument("--rounds", type=int, default=1, help="do each so often")
    parser.add_argument("--markdown", action="store_true", help="a table for each fault, else JSON")
    parser.add_argument(
        "--join", nargs="+", type=Path, metavar="FILE", help="run nothing: read what was printed as JSON"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the logs of workers there")
    parser.add_argument(
        "--peer-python", action="append", default=[], metavar="NAMES=PATH", help="the Python of peers, as in benchmarks"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
