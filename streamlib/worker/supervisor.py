"""`run -p N`: one parent that keeps N worker processes alive, passes signals on and speaks for all of them.

Each process has a slot number that stays over restarts. A process that dies starts again in its slot, later
each time while it keeps dying. The parent holds no events and no connection to Redis: when it dies, its
processes see the end of their channel and drain.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from streamlib.metrics.exposition import merge, render_nothing
from streamlib.metrics.http import ProbeServer
from streamlib.metrics.slots import SlotLink, ask_all

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
"""A process that lived so long was well: its next restart is quick again."""
PROBE_S = 2.0
SCRAPE_S = 3.0
GRACE_S = 10.0
LAST_GRACE_S = 3.0
_LONGEST_WAIT_S = 1.0

USAGE_ERROR = 2
REDIS_UNAVAILABLE = 3

_log = logging.getLogger("streamlib.supervisor")


class Supervisor:
    """Runs `command` in `processes` processes (0: one for each CPU) until a signal ends them.

    `http` is HOST:PORT for /metrics, /livez and /readyz of all together, None for none. A process that does
    not end within `drain_s` and ten seconds after a signal is killed. With `--burst` in the command, a
    process that ends with 0 is done and does not come back.
    """

    def __init__(self, command: list[str], processes: int, *, http: str | None, drain_s: float) -> None:
        self._children = [_Child(slot, command) for slot in range(processes or os.cpu_count() or 1)]
        self._burst = "--burst" in command
        self._http = http
        self._drain_s = drain_s
        self._woken: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._signals = 0
        self._kill_at: float | None = None
        self._codes: list[int] = []
        self._verdict: int | None = None

    def run(self) -> int:
        """The exit code: the worst of the processes after a drain; 2 or 3 when they cannot even start.

        Call it from the main thread. Raises ConfigError when `http` cannot be had.
        """
        server = ProbeServer(self._http, self._render, self._live, self._ready) if self._http else None
        try:
            if server is not None:
                _log.info("http_listening", extra={"url": server.start(), "processes": len(self._children)})
            with _signals_into(self._woken):
                return self._supervise()
        finally:
            if server is not None:
                server.close()

    def _supervise(self) -> int:
        try:
            while any(not child.done for child in self._children):
                self._start_due()
                self._wait()
                self._reap()
                self._kill_late()
        finally:
            for child in self._children:
                child.kill()
        return max(self._codes, default=0) if self._verdict is None else self._verdict

    def _start_due(self) -> None:
        for child in self._children:
            if child.due_s is not None and child.due_s <= time.monotonic():
                child.start()

    def _wait(self) -> None:
        """Until a signal arrives, a child ends or a restart is due; at most a second, in case one is lost."""
        due = [child.due_s - time.monotonic() for child in self._children if child.due_s is not None]
        try:
            signum = self._woken.get(timeout=max(min([_LONGEST_WAIT_S, *due]), 0))
        except queue.Empty:
            return
        if signum != signal.SIGCHLD:
            self._pass_on(signum)

    def _pass_on(self, signum: int) -> None:
        """The n-th TERM or INT is the n-th TERM of every child."""
        self._signals += 1
        _log.info("stopping", extra={"signal": signal.Signals(signum).name, "nth": self._signals})
        kill_at = self._stop()
        if self._signals >= 3:
            self._kill_at = min(kill_at, time.monotonic() + LAST_GRACE_S)

    def _stop(self) -> float:
        """TERM for all; when those that are left will be killed."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._drain_s + GRACE_S
        for child in self._children:
            child.stop()
        return self._kill_at

    def _reap(self) -> None:
        for child in self._children:
            code = child.reap()
            if code is not None:
                self._ended(child, code)

    def _ended(self, child: _Child, code: int) -> None:
        if self._kill_at is not None:
            child.done = True
            self._codes.append(self._exit_code(code))
        elif code == 0 and self._burst:
            child.done = True
        elif code == USAGE_ERROR or (code == REDIS_UNAVAILABLE and child.starts == 1):
            _log.error("process_cannot_start", extra={"slot": child.slot, "exit_code": code})
            child.done = True
            self._verdict = code
            self._stop()
        else:
            pause_s = child.restart_later()
            _log.warning("process_ended", extra={"slot": child.slot, "exit_code": code, "restart_in_s": pause_s})

    def _exit_code(self, code: int) -> int:
        """As a shell tells it; dying of the first TERM means that it was still loading and held nothing."""
        if code == -signal.SIGTERM and self._signals <= 1:
            return 0
        return code if code >= 0 else 128 - code

    def _kill_late(self) -> None:
        if self._kill_at is None or time.monotonic() < self._kill_at:
            return
        for child in self._children:
            if child.kill():
                _log.error("process_killed", extra={"slot": child.slot, "why": "it did not end in time"})

    def _links(self) -> list[SlotLink]:
        return [link for child in self._children if (link := child.link) is not None]

    def _render(self, accept: str) -> tuple[str, bytes]:
        answers = ask_all(self._links(), accept, SCRAPE_S)
        told = [(slot, answer) for slot, answer in answers.items() if answer is not None]
        if not told:
            return render_nothing(accept)
        return told[0][1].content_type, merge((slot, answer.body) for slot, answer in told)

    def _live(self) -> tuple[bool, str]:
        """A process that loads its app or waits for its restart is in good hands; a silent one is not."""
        links = self._links()
        answers = ask_all(links, None, PROBE_S)
        wrong = [
            f"slot {link.slot}: does not answer"
            for link in links
            if link.answered and answers[link.slot] is None and not link.closed_within(PROBE_S)
        ]
        wrong += [f"slot {slot}: {told.live_text}" for slot, told in answers.items() if told and not told.live]
        return not wrong, "; ".join(wrong) or "alive"

    def _ready(self) -> tuple[bool, str]:
        if self._kill_at is not None:
            return False, "draining"
        answers = ask_all(self._links(), None, PROBE_S)
        wrong = []
        for child in self._children:
            told = answers.get(child.slot)
            if not child.done and (told is None or not told.ready):
                wrong.append(f"slot {child.slot}: {told.ready_text if told else 'does not answer'}")
        return not wrong, "; ".join(wrong) or "ready"


class _Child:
    """One slot and the process in it."""

    def __init__(self, slot: int, command: list[str]) -> None:
        self.slot = slot
        self.link: SlotLink | None = None
        self.due_s: float | None = time.monotonic()
        """When to start a process; None while one runs or none shall."""
        self.starts = 0
        self.done = False
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._pause_s = FIRST_PAUSE_S

    def start(self) -> None:
        self.due_s = None
        self.starts += 1
        self._started_s = time.monotonic()
        link = SlotLink(self.slot)
        try:
            # A process group of its own: Ctrl-C in a terminal reaches the parent alone, which passes it on.
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                self._command,
                env={**os.environ, **link.environ},
                pass_fds=(link.child_fd,),
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as error:  # out of processes or memory; the other slots go on
            link.close()
            pause_s = self.restart_later()
            _log.error(
                "process_start_failed",
                extra={"slot": self.slot, "error": str(error), "restart_in_s": pause_s},
            )
            return
        link.started()
        self.link = link
        _log.info("process_started", extra={"slot": self.slot, "pid": self._process.pid, "starts": self.starts})

    def restart_later(self) -> float:
        """Set when to start again; the pause until then."""
        if time.monotonic() - self._started_s >= STEADY_S:
            self._pause_s = FIRST_PAUSE_S
        pause_s = self._pause_s
        self._pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        self.due_s = time.monotonic() + pause_s
        return pause_s

    def reap(self) -> int | None:
        """The exit code of a process that has ended since, else None."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        self._process = None
        if self.link is not None:
            link, self.link = self.link, None
            link.close()
        return code

    def stop(self) -> None:
        """TERM for the process; a slot that waits for its restart is done."""
        self.due_s = None
        if self._process is None:
            self.done = True
        else:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> bool:
        """KILL for the process; False when none runs."""
        if self._process is None:
            return False
        self._process.kill()
        self._process.wait()
        return True


@contextmanager
def _signals_into(woken: queue.SimpleQueue[int]) -> Iterator[None]:
    """TERM, INT and CHLD go into the queue, whose `put` may run inside a signal handler."""

    def put(signum: int, frame: FrameType | None) -> None:
        woken.put(signum)

    before = {signum: signal.signal(signum, put) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
