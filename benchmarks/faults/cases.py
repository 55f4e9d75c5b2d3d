"""The faults. Each takes a rig and returns what it counted; nothing in a result is typed by anybody."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from benchmarks.faults.deeds import DIE
from benchmarks.faults.rig import Rig, Supervisor
from tests.helpers.proxy import ChaosProxy
from tests.helpers.waiting import wait_until
from tests.helpers.workers import WorkerProc

Found = dict[str, int | float | str | None]
WORK_S = 0.05
KILLED_WORK_S = 0.2
"""Longer: publishing must not take as long as handling what is published."""
POISON = 10_000
MOST_DEATHS = 10
POISON_QUIET_S = 60.0
"""No death for so long ends it; SAQ takes five seconds for each job that it takes back."""
LOST_REPLY = "lost-reply"
_EVERY_S = 0.1


def _work(numbers: Sequence[int], work_s: float = WORK_S) -> list[tuple[int, str, float]]:
    return [(n, "work", work_s) for n in numbers]


def _wait(cond: Callable[[], object], timeout_s: float) -> bool:
    """Whether it held within that time."""
    deadline = time.monotonic() + timeout_s
    while not cond():
        if time.monotonic() > deadline:
            return False
        time.sleep(_EVERY_S)
    return True


def _late_s(rig: Rig) -> float:
    """So long later whatever a library gives out a second time has been given out."""
    return 2 * rig.peer.idle_s + 2


def _trickle(rig: Rig, seconds: float, until: Callable[[], object] = lambda: False) -> None:
    """An event every second, as some libraries look for what lies idle only when one comes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not until():
        rig.poke()
        time.sleep(1)


def kill(rig: Rig, kills: int = 3, events: int = 100) -> Found:
    """kill -9 to one of two workers in the middle of handlers, so many times one after another. If anything is missing
    half a minute later more events are published, as some libraries look for what lies idle only then."""
    workers = rig.workers(2)
    quiet, recovery_s, everything = 0, 0.0, range(kills * events)
    for number in range(kills):
        numbers = everything[number * events : (number + 1) * events]
        rig.publish(_work(numbers, KILLED_WORK_S))
        _kill_in_the_middle(rig, workers[0], numbers)
        at = time.monotonic()
        _wait(lambda: not rig.runs().lost(numbers), 30)  # noqa: B023
        if missing := rig.runs().lost(numbers):
            quiet += missing
            _trickle(rig, 60, lambda: not rig.runs().lost(numbers))  # noqa: B023
        recovery_s = max(recovery_s, time.monotonic() - at)
        workers[0].start()
        rig.wait_awake(workers)
    time.sleep(_late_s(rig))
    runs = rig.runs()
    return {
        "lost": runs.lost(everything),
        "missing_after_30_s": quiet,
        "begun_twice": sum(len(runs.began(n)) > 1 for n in everything),
        "ended_twice": runs.doubled(everything),
        "longest_recovery_s": round(recovery_s, 1),
    }


def _kill_in_the_middle(rig: Rig, worker: WorkerProc, numbers: Sequence[int]) -> None:
    def in_the_middle() -> bool:
        runs = rig.runs()
        under_way = any(run.session == worker.pid and not run.ended_ns and run.n in numbers for run in runs.all)
        return under_way and len(runs.ended(numbers)) >= len(numbers) // 10

    wait_until(in_the_middle, 60, every=0.002, what="the worker is in a handler")
    rig.kill(worker)


def killed_after(rig: Rig) -> Found:
    """A worker dies when a handler has done everything and nothing of it has been acknowledged; there is another."""
    rig.workers(2)
    rig.publish([(0, "die-after", WORK_S)])
    _trickle(rig, 2 * _late_s(rig))
    runs = rig.runs()
    return {"lost": runs.lost([0]), "ended": runs.ended([0])[0]}


def longer(rig: Rig, act: str = "work") -> Found:
    """A handler that takes three times the idle time, with two workers."""
    rig.workers(2)
    takes_s = 3 * rig.peer.idle_s
    rig.publish([(0, act, takes_s)])
    _trickle(rig, takes_s + _late_s(rig))
    runs = rig.runs()
    return {
        "begun": len(runs.began(0)),
        "most_at_once": runs.most_at_once(0),
        "ended": runs.ended([0])[0],
        "cut_by_a_timeout": sum(run.cut for run in runs.began(0)),
    }


def blocking(rig: Rig) -> Found:
    """The same with a handler that does not let its event loop run (where handlers run in threads: the same again)."""
    return longer(rig, "block")


def poison(rig: Rig, healthy: int = 50) -> Found:
    """One event among healthy ones kills its worker whenever it runs; a supervisor starts the worker again."""
    numbers = range(healthy)
    (worker,) = rig.workers(1)
    supervisor = Supervisor(rig, worker)
    events = _work(numbers)
    events.insert(healthy // 2, (POISON, DIE, 0.0))
    rig.publish(events)
    quiet_s, deaths, changed = 2 * rig.peer.idle_s + POISON_QUIET_S, 0, time.monotonic()
    while deaths < MOST_DEATHS and time.monotonic() - changed < quiet_s:
        supervisor.look()
        _trickle(rig, 1)
        if (now := len(rig.runs().began(POISON))) > deaths:
            deaths, changed = now, time.monotonic()
    _trickle(rig, 30, lambda: supervisor.look() or not rig.runs().lost(numbers))
    ending, runs = "goes on" if deaths >= MOST_DEATHS else "ended", rig.runs()
    return {
        "deaths": deaths,
        "poison": ending,
        "worker": "killed again" if ending == "goes on" else rig.state(worker),
        "healthy_not_run": runs.lost(numbers),
        "healthy_ended_twice": runs.doubled(numbers),
        "pending": rig.pending(),
        "kept_in": rig.kept(DIE.encode()),
    }


def undecodable(rig: Rig) -> Found:
    """A message whose body is not what the library writes, then healthy ones."""
    return _garbage(rig, rig.peer.undecodable) | {"kept_in": rig.kept(b"no codec reads")}


def foreign(rig: Rig) -> Found:
    """An entry in the stream that has none of the library's fields, then healthy ones."""
    if not rig.peer.foreign:
        return {"healthy_not_run": None}
    return _garbage(rig, rig.peer.foreign) | {"kept_in": rig.kept(b"hello")}


def _garbage(rig: Rig, commands: Sequence[Sequence[str | bytes]]) -> Found:
    numbers, late = range(20), range(100, 120)
    (worker,) = rig.workers(1)
    supervisor = Supervisor(rig, worker)
    for command in commands:
        rig.client.execute_command(*command)
    rig.publish(_work(numbers))
    _wait(lambda: supervisor.look() or not rig.runs().lost(numbers), 30)
    _trickle(rig, _late_s(rig), supervisor.look)  # it may come back as what lies idle
    rig.publish(_work(late))
    _trickle(rig, 20, lambda: supervisor.look() or not rig.runs().lost(late))
    everything, runs = [*numbers, *late], rig.runs()
    found: Found = {"healthy_not_run": runs.lost(everything), "worker": rig.state(worker)}
    found |= {"worker_restarts": supervisor.seen(runs)}
    if found["healthy_not_run"]:
        _restart(rig, worker)
    runs = rig.runs()
    found |= {"not_run_after_a_restart": runs.lost(everything), "ended_twice": runs.doubled(everything)}
    return found | {"pending": rig.pending()}


def _restart(rig: Rig, worker: WorkerProc) -> None:
    """Once more by hand, with time for all that the worker held to come back."""
    rig.kill(worker)
    worker.start()
    _trickle(rig, 2 * _late_s(rig) + 5)


def flush(rig: Rig, events: int = 50) -> Found:
    """FLUSHALL under an idle worker, then more events; if any is missing, a restart of the worker and ten more."""
    before, after, later = range(events), range(100, 100 + events), range(200, 210)
    (worker,) = rig.workers(1)
    rig.publish(_work(before))
    wait_until(lambda: not rig.runs().lost(before), 60)
    time.sleep(1)
    rig.client.flushall()
    time.sleep(1)
    refused = sum(answer != "ok" for answer in rig.publish(_work(after)))
    _wait(lambda: not rig.runs().lost(after), 30)
    found: Found = {"refused": refused, "not_run_without_a_restart": rig.runs().lost(after)}
    found |= {"worker": rig.state(worker)}
    if found["not_run_without_a_restart"]:
        rig.kill(worker)
        worker.start()
        rig.wait_awake([worker])
        rig.publish(_work(later))
        _wait(lambda: not rig.runs().lost([*after, *later]), 20)
        found |= {"later_not_run": rig.runs().lost(later)}
    runs = rig.runs()
    return found | {"lost": runs.lost(after), "ended_twice": runs.doubled([*before, *after])}


def lost_read(rig: Rig) -> Found:
    """Five times, under load, the worker's road loses the answer that brings events."""
    return _replies(rig, rig.peer.read)


def lost_ack(rig: Rig) -> Found:
    """Five times, under load, the worker's road loses the answer to an acknowledgement."""
    return _replies(rig, rig.peer.ack)


def _replies(rig: Rig, marker: bytes, strikes: int = 5) -> Found:
    proxy = rig.proxy()
    (worker,) = rig.workers(1, proxy.url)
    supervisor, numbers = Supervisor(rig, worker), range(20 * strikes)
    for strike in range(strikes):
        _lose(rig, proxy, marker, numbers[20 * strike : 20 * (strike + 1)], supervisor)
    proxy.heal()
    _trickle(rig, 3 * _late_s(rig), supervisor.look)
    found: Found = {"struck": proxy.struck, "not_run_without_a_restart": rig.runs().lost(numbers)}
    found |= {"worker_restarts": supervisor.seen(rig.runs()), "worker": rig.state(worker)}
    if rig.runs().lost(numbers):
        _restart(rig, worker)
    runs = rig.runs()
    return found | {"lost": runs.lost(numbers), "ended_twice": runs.doubled(numbers)}


def _lose(rig: Rig, proxy: ChaosProxy, marker: bytes, numbers: Sequence[int], supervisor: Supervisor) -> None:
    """Publish these while the answer of the next request with the marker is lost."""
    struck = proxy.struck
    proxy.drop_next_reply(marker)
    rig.publish(_work(numbers))
    _wait(lambda: supervisor.look() or proxy.struck > struck, 10)
    time.sleep(1)


def lost_publish(rig: Rig) -> Found:
    """The answer to one publish is lost; if the caller is told of an error it publishes once more, as callers do."""
    proxy = rig.proxy()
    rig.workers(1)
    publisher, event = rig.publisher(proxy.url), (3, LOST_REPLY, WORK_S)
    rig.publish(_work([0, 1, 2]), publisher)
    proxy.drop_next_reply(LOST_REPLY.encode())
    told = rig.publish([event], publisher)[0]
    struck = proxy.struck
    proxy.heal()
    again = rig.publish([event], publisher)[0] if told != "ok" else None
    _trickle(rig, _late_s(rig))
    return {"struck": struck, "told": told, "told_the_second_time": again, "ended": rig.runs().ended([3])[3]}


FAULTS: Mapping[str, Callable[[Rig], Found]] = {
    "kill": kill,
    "killed_after": killed_after,
    "longer": longer,
    "blocking": blocking,
    "poison": poison,
    "undecodable": undecodable,
    "foreign": foreign,
    "flush": flush,
    "lost_read": lost_read,
    "lost_ack": lost_ack,
    "lost_publish": lost_publish,
}
