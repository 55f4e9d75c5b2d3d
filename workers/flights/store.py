"""The SQLite file that `delays` and `alerts` write to: an effect outside Redis that happens once per event.

A handler may run twice for one event (its worker died before Redis heard that it was done). So each effect is
one transaction with the event's idempotency key as primary key: a second run finds it and changes nothing.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

_BUSY_S = 30.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS counted (idempotency_key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS carrier_delays (
    carrier TEXT PRIMARY KEY,
    departures INTEGER NOT NULL, departure_delay_min INTEGER NOT NULL,
    arrivals INTEGER NOT NULL, arrival_delay_min INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notifications (
    idempotency_key TEXT PRIMARY KEY,
    flight_id TEXT NOT NULL, carrier TEXT NOT NULL, delay_min INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS repeats (consumer_group TEXT PRIMARY KEY, refused INTEGER NOT NULL) WITHOUT ROWID;
"""

_ADD_DELAYS = """
INSERT INTO carrier_delays VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (carrier) DO UPDATE SET
    departures = departures + ?2, departure_delay_min = departure_delay_min + ?3,
    arrivals = arrivals + ?4, arrival_delay_min = arrival_delay_min + ?5
"""

_ADD_REPEATS = "INSERT INTO repeats VALUES (?1, ?2) ON CONFLICT (consumer_group) DO UPDATE SET refused = refused + ?2"


class Delay(Struct, frozen=True):
    """One delay to be counted, minutes; `arrival` tells it from a departure's."""

    idempotency_key: str
    carrier: str
    arrival: bool
    delay_min: int


class EffectStore:
    """One connection, shared by the threads of a worker; several workers may have the file open."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises sqlite3.Error when it cannot be used."""
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        # A commit survives the death of the process; a power cut may cost the last ones.
        _use_wal(self._connection)
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def count_delays(self, delays: Iterable[Delay]) -> int:
        """Add delays to the sums of their carriers, but none a second time. Returns how many were new."""
        sums: dict[str, list[int]] = {}
        new = repeated = 0
        with self._transaction() as cursor:
            for delay in delays:
                cursor.execute("INSERT OR IGNORE INTO counted VALUES (?)", (delay.idempotency_key,))
                if cursor.rowcount == 0:
                    repeated += 1
                    continue
                new += 1
                carrier = sums.setdefault(delay.carrier, [0, 0, 0, 0])
                carrier[2 if delay.arrival else 0] += 1
                carrier[3 if delay.arrival else 1] += delay.delay_min
            cursor.executemany(_ADD_DELAYS, [(carrier, *numbers) for carrier, numbers in sums.items()])
            if repeated:
                cursor.execute(_ADD_REPEATS, ("delays", repeated))
        return new

    def notify(self, idempotency_key: str, flight_id: str, carrier: str, delay_min: int) -> bool:
        """Put a notice in the outbox. Returns False when it is there already."""
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT OR IGNORE INTO notifications VALUES (?, ?, ?, ?)",
                (idempotency_key, flight_id, carrier, delay_min),
            )
            is_new = cursor.rowcount == 1
            if not is_new:
                cursor.execute(_ADD_REPEATS, ("alerts", 1))
        return is_new

    def carrier_delays(self) -> dict[str, tuple[int, int, int, int]]:
        """carrier -> departures, sum of departure delays, arrivals, sum of arrival delays."""
        return {carrier: (a, b, c, d) for carrier, a, b, c, d in self._rows("SELECT * FROM carrier_delays")}

    def counted(self) -> int:
        """How many events the sums stand for."""
        return int(self._rows("SELECT count(*) FROM counted")[0][0])

    def notices(self) -> list[tuple[str, int]]:
        """Flight id and delay in minutes of every notice."""
        return self._rows("SELECT flight_id, delay_min FROM notifications ORDER BY flight_id")

    def repeats(self) -> dict[str, int]:
        """group -> how many repeated runs changed nothing."""
        return dict(self._rows("SELECT consumer_group, refused FROM repeats"))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        with self._lock, closing(self._connection.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")

    def _rows(self, query: str) -> list[Any]:
        with self._lock:
            return self._connection.execute(query).fetchall()


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log. SQLite does not wait for another process that does the same: we do."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
