"""The faults against libraries: what is counted, and that the command does one to a worker of ours."""

import json
from pathlib import Path

import pytest

from benchmarks.faults import __main__ as command
from benchmarks.faults import tables
from benchmarks.faults.peers import PEERS
from benchmarks.faults.runs import Runs

TWICE_AT_ONCE = [
    b"began 1 10-0 10 100",
    b"began 1 11-0 11 150",
    b"ended 1 10-0 10 200",
    b"ended 1 11-0 11 250",
    b"began 2 10-1 10 300",
    b"began 3 10-2 10 400",
    b"cut 3 10-2 10 500",
]


def test_a_run_that_did_not_reach_its_end_is_a_lost_one_and_two_ends_are_a_doubled_one() -> None:
    runs = Runs.read(TWICE_AT_ONCE)
    assert runs.lost([1, 2, 3, 4]) == 3, "killed in it, cut by an exception, never begun"
    assert runs.doubled([1, 2, 3, 4]) == 1
    assert [runs.most_at_once(n) for n in (1, 2, 3, 4)] == [2, 1, 1, 0]
    assert runs.processes() == 2


def test_one_run_after_another_is_not_two_at_once() -> None:
    runs = Runs.read([b"began 1 10-0 10 100", b"ended 1 10-0 10 200", b"began 1 10-1 10 200", b"ended 1 10-1 10 300"])
    assert runs.most_at_once(1) == 1


def test_only_libraries_that_are_known_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["nonsense"]) == 1
    assert "no peer 'nonsense'" in capsys.readouterr().err
    (arq,) = command.chosen(["arq"], {"arq": "/old/bin/python"})
    assert arq.command[0] == "/old/bin/python"


def test_every_library_has_its_app() -> None:
    for name in PEERS:
        assert (Path(command.__file__).parent / "apps" / f"{name}.py").exists()


def test_runs_of_the_command_stand_side_by_side(tmp_path: Path) -> None:
    about = {"versions": {"arq": "1.0"}, "settings": "s"}
    for number, faults in enumerate(({"kill": [{"lost": 1}], "flush": [{"lost": None}]}, {"kill": [{"lost": 0}]})):
        (tmp_path / f"{number}.json").write_text(json.dumps({"arq": {**about, "faults": faults}}))
    table = tables.markdown(tables.read(sorted(tmp_path.iterdir())))
    assert "| arq 1.0 | 1 / 0 |" in table
    assert "| arq 1.0 | - |" in table


@pytest.mark.slow
def test_a_lost_answer_to_a_publish_is_no_second_event_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["streamlib", "--fault", "lost_publish"]) == 0
    found = json.loads(capsys.readouterr().out)["streamlib"]["faults"]["lost_publish"][0]
    assert found == {"struck": 1, "told": "ok", "told_the_second_time": None, "ended": 1, "took_s": found["took_s"]}
