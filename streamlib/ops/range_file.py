"""Writes a range of a topic into a file of JSON lines, as `streamlib publish` reads them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from streamlib.errors import Refused
from streamlib.keys import Keys
from streamlib.ops.archive import ArchiveFile, publishable_line
from streamlib.ops.pace import AT_ONCE, Pace
from streamlib.ops.places import partitions_of, places
from streamlib.ops.ranges import Asked, Scan, ranges_of
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.replays import Totals


class RangeFile:
    """One range, one new file, which is there when it is whole. Each event in it stands on a line of its own, the
    events of a partition in their order. Of a group only what it was given.

    `check` comes first. `totals` counts what was written as `replayed`.
    """

    def __init__(self, redis: RedisDoor, keys: Keys, asked: Asked, group: str | None, path: Path) -> None:
        self.notes: list[str] = []
        self.totals = Totals()
        self._redis = redis
        self._keys = keys
        self._asked = asked
        self._group = group
        self._path = path
        self._scans: list[Scan] = []

    async def check(self) -> None:
        """Find out what is meant, and whether it is still there and the file is not.

        Raises NotFound for a topic or group that is none, Refused for history that is gone and a file that exists.
        """
        self._check_free()
        if self._group is not None:
            await places(self._redis, self._keys, self._asked.topic, self._group)
        names = [one.stream for one in await partitions_of(self._redis, self._keys, self._asked.topic)]
        found, self.notes = await ranges_of(self._redis, self._asked, names, self._group)
        self._scans = [Scan(self._redis, name, self._asked, of) for name, of in zip(names, found, strict=True)]

    async def run(self, pace: Pace, done: Callable[[int], None]) -> Totals:
        """Write the file, after `check`; `done(n)` hears of every n entries. Without any event there is no file.

        Raises StreamlibError when it cannot be written, Refused when somebody else has written it meanwhile,
        RedisUnavailable; there is no file of this run then.
        """
        part = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}.part")  # not that of a run beside this
        with ArchiveFile(part, failing="cannot write {path}: {error}; there is no file now") as file:
            for scan in self._scans:
                await self._write(scan, file, pace, done)
            self._check_free()
        if file.lines:
            part.rename(self._path)
        return self.totals

    def _check_free(self) -> None:
        if self._path.exists():
            raise Refused(f"{self._path} exists; name another file with --out, or remove that one")

    async def _write(self, scan: Scan, file: ArchiveFile, pace: Pace, done: Callable[[int], None]) -> None:
        give_up_s = self._redis.settings.retry_s
        while batch := await self._redis.persist(partial(scan.next, min(AT_ONCE, pace.at_once)), give_up_s=give_up_s):
            await pace.wait()
            lines = [publishable_line(one.message) for one in batch.events]
            written = [line for line in lines if line is not None]
            for line in written:
                file.write(line)
            pace.spend(len(written))
            found = msgspec.structs.replace(
                batch.left_out,
                replayed=len(written),
                foreign=batch.left_out.foreign + len(lines) - len(written),
            )
            self.totals += found
            done(found.entries)
