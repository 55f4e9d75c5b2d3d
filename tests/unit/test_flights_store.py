"""The flights app's store: an effect happens once per idempotency key, in one process and over several."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.source_tree import ROOT
from workers.flights.store import Delay, EffectStore

WRITER = """
import sys
from pathlib import Path
from workers.flights.store import Delay, EffectStore
store = EffectStore(Path(sys.argv[1]))
for n in range(100):
    store.count_delays([Delay(f"k{n}", "UA", False, n), Delay(f"k{n}:a", "UA", True, 1)])
    store.notify(f"k{n}", f"flight-{n}", "UA", n)
store.close()
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EffectStore]:
    opened = EffectStore(tmp_path / "flights.sqlite3")
    yield opened
    opened.close()


def test_a_delay_counts_once(store: EffectStore) -> None:
    batch = [Delay("a", "UA", False, 5), Delay("b", "UA", True, -3), Delay("c", "B6", False, 60)]
    assert store.count_delays(batch) == 3
    assert store.count_delays([*batch, Delay("d", "UA", False, 1)]) == 1
    assert store.carrier_delays() == {"UA": (2, 6, 1, -3), "B6": (1, 60, 0, 0)}
    assert (store.counted(), store.repeats()) == (4, {"delays": 3})


def test_a_notice_is_given_once(store: EffectStore) -> None:
    assert store.notify("a", "flight-1", "UA", 61)
    assert not store.notify("a", "flight-1", "UA", 61)
    assert store.notices() == [("flight-1", 61)]
    assert store.repeats() == {"alerts": 1}


def test_a_batch_that_fails_changes_nothing(store: EffectStore) -> None:
    bad = Delay("b", None, False, 5)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        store.count_delays([Delay("a", "UA", False, 5), bad])
    assert (store.counted(), store.carrier_delays()) == (0, {})
    assert store.count_delays([Delay("a", "UA", False, 5)]) == 1


def test_two_processes_write_the_same_effects_once(tmp_path: Path) -> None:
    path = tmp_path / "flights.sqlite3"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}) for _ in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    store = EffectStore(path)
    assert store.carrier_delays() == {"UA": (100, sum(range(100)), 100, 100)}
    assert len(store.notices()) == 100
    assert store.repeats() == {"delays": 200, "alerts": 100}
    store.close()
