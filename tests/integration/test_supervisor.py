"""One parent, several processes: restarts, signals, one voice for metrics and probes, and no orphans."""

import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamlib.errors import ConfigError
from streamlib.metrics.slots import ENV, SlotChannel, SlotLink, ask_all
from streamlib.worker.supervisor import Supervisor
from tests.helpers.processes import is_alive, process_state
from tests.helpers.servers import HOST
from tests.helpers.waiting import wait_until
from tests.helpers.workers import ROOT, WorkerProc

CHILD = ROOT / "tests/helpers/slot_child.py"
PARENT = """
import sys
from streamlib.logs import setup_logging
from streamlib.settings import LogSettings
from streamlib.worker import supervisor
setup_logging(LogSettings())
supervisor.GRACE_S = float(sys.argv[1])
sys.exit(supervisor.Supervisor(sys.argv[3:], int(sys.argv[2]), http="127.0.0.1:0", drain_s=0.1).run())
"""


class Family:
    """A parent whose children are `slot_child.py`, steered by files in `directory`."""

    def __init__(self, directory: Path, processes: int, *arguments: str, grace_s: float) -> None:
        self.directory = directory
        self.processes = processes
        child = [sys.executable, str(CHILD), str(directory), *arguments]
        command = [sys.executable, "-c", PARENT, str(grace_s), str(processes), *child]
        self.parent = WorkerProc("family", "", cwd=directory, command=command)

    def tell(self, slot: int, name: str, text: str = "") -> None:
        (self.directory / f"{slot}.{name}").write_text(text)

    def happened(self, slot: int) -> list[str]:
        path = self.directory / f"{slot}.log"
        return path.read_text().splitlines() if path.exists() else []

    def pids(self, slot: int) -> list[int]:
        return [int(line.split()[1]) for line in self.happened(slot) if line.startswith("start")]

    def signals(self, slot: int) -> list[str]:
        return [line for line in self.happened(slot) if line[:4] in ("TERM", "INT ")]

    def wait_ready(self) -> None:
        self.parent.wait_ready()

    def end(self) -> None:
        """Whatever the test did, no process of it is left."""
        for slot in range(self.processes):
            for pid in self.pids(slot):
                if is_alive(pid) and str(CHILD) in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)


Start = Callable[..., Family]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(n, *arguments, grace_s=..., before=...)`: a running family; `before(family)` may leave orders."""
    families: list[Family] = []

    def run(
        processes: int,
        *arguments: str,
        grace_s: float = 10,
        before: Callable[[Family], None] | None = None,
    ) -> Family:
        family = Family(tmp_path, processes, *arguments, grace_s=grace_s)
        families.append(family)
        if before is not None:
            before(family)
        family.parent.start()
        return family

    yield run
    for family in families:
        family.parent.__exit__(None, None, None)
        family.end()


def test_metrics_of_all_processes_come_from_one_place_with_their_slots(start: Start) -> None:
    family = start(3)
    family.wait_ready()
    for slot in range(3):
        received = family.parent.metric("streamlib_events_received_total", delivery="new", slot=str(slot))
        assert received == slot + 1
    assert family.parent.metric("streamlib_events_received_total", delivery="new") == 6
    assert family.parent.get("/livez") == (200, "alive\n")


def test_ready_means_every_process_is(start: Start) -> None:
    family = start(2, before=lambda family: family.tell(1, "unready"))
    wait_until(lambda: family.parent.get("/readyz")[1] == "slot 1: connecting\n")
    assert family.parent.get("/readyz")[0] == 503
    assert family.parent.get("/livez")[0] == 200
    (family.directory / "1.unready").unlink()
    family.wait_ready()


def test_a_killed_process_comes_back_in_its_slot_and_is_reaped(start: Start) -> None:
    family = start(2)
    family.wait_ready()
    [victim], [other] = family.pids(0), family.pids(1)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(family.pids(0)) == 2, what="slot 0 has a new process")
    family.wait_ready()
    assert family.pids(1) == [other]
    assert process_state(victim) != "Z"
    assert family.parent.metric("streamlib_events_received_total", delivery="new", slot="0") == 1
    assert family.parent.get("/livez")[0] == 200


def test_a_process_that_keeps_dying_is_restarted_ever_later(start: Start) -> None:
    family = start(2, before=lambda family: family.tell(0, "exit", "1"))
    wait_until(lambda: len(family.happened(0)) == 3)
    wait_until(lambda: _pauses(family) == [0.5, 1.0, 2.0])
    assert family.parent.get("/livez")[0] == 200
    assert len(family.pids(1)) == 1


def _pauses(family: Family) -> list[float]:
    return [float(found) for found in re.findall(r"restart_in_s=([\d.]+)", family.parent.log())]


def test_a_drain_reaches_every_process_once_and_the_worst_code_counts(start: Start) -> None:
    family = start(3, before=lambda family: family.tell(1, "code", "7"))
    family.wait_ready()
    family.parent.term()
    assert family.parent.wait() == 7
    assert [family.signals(slot) for slot in range(3)] == [["TERM 1"]] * 3
    assert not any(is_alive(pid) for slot in range(3) for pid in family.pids(slot))


def test_a_clean_drain_ends_with_zero(start: Start) -> None:
    family = start(2)
    family.wait_ready()
    family.parent.term()
    assert family.parent.wait() == 0


def test_ctrl_c_in_a_terminal_arrives_once(start: Start) -> None:
    """A terminal sends INT to the whole foreground process group."""
    family = start(2)
    family.wait_ready()
    os.killpg(os.getpgid(family.parent.pid), signal.SIGINT)
    assert family.parent.wait() == 0
    assert [family.signals(slot) for slot in range(2)] == [["TERM 1"]] * 2


def test_the_second_and_third_signal_are_passed_on(start: Start) -> None:
    family = start(2, grace_s=30, before=lambda family: family.tell(0, "stubborn"))
    family.wait_ready()
    for number in range(1, 4):
        family.parent.term()
        wait_until(lambda count=number: len(family.signals(0)) == count)  # type: ignore[misc]
    assert family.parent.wait() == 143
    assert family.signals(0) == ["TERM 1", "TERM 2", "TERM 3"]
    assert family.signals(1) == ["TERM 1"]


def test_while_draining_it_is_alive_but_not_ready(start: Start) -> None:
    family = start(1, grace_s=60, before=lambda family: family.tell(0, "stubborn"))
    family.wait_ready()
    family.parent.term()
    wait_until(lambda: family.signals(0))
    assert family.parent.get("/readyz") == (503, "draining\n")
    assert family.parent.get("/livez")[0] == 200


def test_a_process_that_does_not_end_is_killed(start: Start) -> None:
    family = start(2, grace_s=0.5, before=lambda family: family.tell(1, "stubborn"))
    family.wait_ready()
    family.parent.term()
    assert family.parent.wait() == 128 + signal.SIGKILL
    assert not any(is_alive(pid) for slot in range(2) for pid in family.pids(slot))


@pytest.mark.parametrize("code", [2, 3])
def test_a_process_that_cannot_start_ends_them_all(start: Start, code: int) -> None:
    family = start(3, before=lambda family: family.tell(1, "exit", str(code)))
    assert family.parent.wait() == code
    assert family.happened(1) == [f"exit {code}"]
    assert not any(is_alive(pid) for slot in range(3) for pid in family.pids(slot))


def test_a_process_that_loses_redis_later_is_restarted(start: Start) -> None:
    family = start(2)
    family.wait_ready()
    family.tell(0, "exit", "3")
    os.kill(family.pids(0)[0], signal.SIGKILL)
    wait_until(lambda: "exit 3" in family.happened(0))
    (family.directory / "0.exit").unlink()
    wait_until(lambda: len(family.pids(0)) == 2)
    family.wait_ready()
    assert family.parent.running


def test_a_burst_ends_when_every_process_is_done(start: Start) -> None:
    family = start(3, "--burst")
    assert family.parent.wait() == 0
    assert [len(family.pids(slot)) for slot in range(3)] == [1, 1, 1]


def test_processes_drain_when_their_parent_is_killed(start: Start) -> None:
    family = start(3)
    family.wait_ready()
    family.parent.kill9()
    pids = [pid for slot in range(3) for pid in family.pids(slot)]
    wait_until(lambda: not any(is_alive(pid) for pid in pids), what="no orphan is left")
    assert [family.signals(slot) for slot in range(3)] == [["TERM 1"]] * 3


def test_a_hanging_process_is_named_and_hides_no_other(start: Start) -> None:
    family = start(2)
    family.wait_ready()
    os.kill(family.pids(0)[0], signal.SIGSTOP)
    wait_until(lambda: family.parent.get("/livez") == (503, "slot 0: does not answer\n"))
    assert family.parent.get("/readyz") == (503, "slot 0: does not answer\n")
    samples = wait_until(family.parent.metrics, ignore=(AssertionError,))
    slots = {found for name in samples for found in re.findall(r'slot="(\d)"', name)}
    assert slots == {"1"}
    os.kill(family.pids(0)[0], signal.SIGCONT)
    family.wait_ready()
    assert family.parent.get("/livez")[0] == 200


def test_a_port_in_use_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, str(CHILD), str(tmp_path)]
        with pytest.raises(ConfigError, match=f"{HOST}:{port}"):
            Supervisor(command, 2, http=f"{HOST}:{port}", drain_s=1).run()
    assert list(tmp_path.iterdir()) == []


# --- the channel


def test_the_channel_is_taken_out_of_the_environment_and_not_inherited() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        os.set_inheritable(theirs.fileno(), True)
        environ = {ENV: f"5:{theirs.detach()}", "OTHER": "x"}
        channel = SlotChannel.from_environ(environ)
        assert channel is not None
        assert channel.slot == 5
        assert environ == {"OTHER": "x"}
        assert not channel._socket.get_inheritable()
        channel._socket.close()
    assert SlotChannel.from_environ({}) is None


@pytest.mark.parametrize("value", ["", "1", "x:3", "1:x", "1:99999"])
def test_a_channel_that_is_none_is_explained(value: str) -> None:
    with pytest.raises(ConfigError, match="run -p"):
        SlotChannel.from_environ({ENV: value})


def test_a_child_that_never_answers_is_not_asked_for_ever() -> None:
    """Its socket buffer stays far from full: a stopped process can go on where it was."""
    link = SlotLink(0)
    for _ in range(1_000):
        assert ask_all([link], "", 0)[0] is None
    refused = link.ask("").exception(timeout=0)
    assert isinstance(refused, ConnectionError)
    assert "hangs" in str(refused)
    link.close()
