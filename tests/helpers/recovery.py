"""How long a test waits for what it expects, after the last thing done to a server, a worker or the network.

The rig says `struck()` whenever it kills, freezes, wakes, cuts, heals or sends a command of which everybody suffers;
what waits for conditions says `held()`. The time between them is the recovery, at most: the condition may have held
before somebody looked. One test at a time runs in a process.
"""

import time

from msgspec import Struct

STRIKING = {
    "ACL SETUSER", "CLIENT KILL", "CLIENT PAUSE", "CLUSTER SETSLOT", "CONFIG SET", "DEBUG SLEEP", "FAILOVER",
    "FLUSHALL", "FLUSHDB", "RENAME", "REPLICAOF", "SCRIPT FLUSH", "SENTINEL FAILOVER", "SWAPDB", "XGROUP DESTROY",
}  # fmt: skip
"""Commands that strike whoever works on the server."""


class _Moments(Struct):
    struck_s: float | None = None
    longest_s: float | None = None


_now = _Moments()


def struck() -> None:
    """Something was just done to a server, a worker or the network."""
    _now.struck_s = time.monotonic()


def held() -> None:
    """What a test waits for holds."""
    if _now.struck_s is not None:
        _now.longest_s = max(_now.longest_s or 0.0, time.monotonic() - _now.struck_s)


def take() -> float | None:
    """The longest recovery since the last call, seconds; None when nothing struck, or nobody waited."""
    global _now
    longest_s, _now = _now.longest_s, _Moments()
    return longest_s


def is_striking(command: tuple[object, ...]) -> bool:
    """Is this a command of which everybody on the server suffers? Takes it word by word or "CONFIG SET" as one."""
    words = " ".join(word.decode() if isinstance(word, bytes) else str(word) for word in command[:2]).upper().split()
    return bool(words) and (words[0] in STRIKING or " ".join(words[:2]) in STRIKING)
