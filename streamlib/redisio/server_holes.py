"""Versions with holes that concern what we do: which release of which branch mended them."""

from __future__ import annotations

from msgspec import Struct

from streamlib.redisio.server import ServerInfo

Version = tuple[int, int, int]


class Hole(Struct, frozen=True):
    """`redis` and `valkey` name the first release of each branch without it. Branches that are not named were not
    mended; those newer than the last, and those before `since`, never had it, nor had a server without any."""

    names: str
    why: str
    redis: tuple[Version, ...]
    valkey: tuple[Version, ...] = ()
    since: tuple[int, int] = (0, 0)

    def is_in(self, info: ServerInfo) -> bool:
        """Whether this version has it. A version that is not known has no holes that we know of."""
        mended, version = self._mended(info), info.version_tuple
        if not mended or not version or not self.since <= version[:2] <= mended[-1][:2]:
            return False
        return not any(version[:2] == first[:2] and version >= first for first in mended)

    def mended_in(self, info: ServerInfo) -> str:
        """The release to go to: of the same branch where there is one, else the next."""
        mended = self._mended(info)
        return ".".join(map(str, next((one for one in mended if one > info.version_tuple), mended[-1])))

    def _mended(self, info: ServerInfo) -> tuple[Version, ...]:
        return self.valkey if info.kind == "valkey" else self.redis


HOLES = (
    Hole(
        "CVE-2022-31144 and CVE-2022-35951 (XAUTOCLAIM writes beyond its memory)",
        "workers use XAUTOCLAIM; whoever may use it can crash the server or run code in it",
        redis=((7, 0, 5),),
    ),
    Hole(
        "CVE-2022-24834 (a script overflows the heap by cjson or cmsgpack)",
        "whoever may run scripts, as every worker must, can crash the server or run code in it",
        redis=((7, 0, 12),),
    ),
    Hole(
        "CVE-2025-21605 (replies to clients that did not log in grow without bound)",
        "whoever reaches the server can fill its memory without a password",
        redis=((7, 2, 8), (7, 4, 3)),
        valkey=((7, 2, 9), (8, 0, 3), (8, 1, 1)),
    ),
    Hole(
        "CVE-2025-49844, CVE-2025-46817, CVE-2025-46818 and CVE-2025-46819 (scripts)",
        "whoever may run scripts, as every worker must, can crash the server or run code in it",
        redis=((7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
        valkey=((7, 2, 11), (8, 0, 6), (8, 1, 4)),
    ),
    Hole(
        "a WAITAOF that may answer too early",
        'durability="fsync" waits for it: what was confirmed may not be on disk yet',
        redis=((7, 2, 8), (7, 4, 3)),
        since=(7, 2),
    ),
)


def holes_of(info: ServerInfo) -> list[Hole]:
    """Those that a server of this version has, unless its distributor mended them without a new number."""
    return [hole for hole in HOLES if hole.is_in(info)]
