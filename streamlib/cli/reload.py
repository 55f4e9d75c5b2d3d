"""`run --reload`: a parent that starts the worker again when a Python file changes. For development."""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
from pathlib import Path
from types import FrameType

_log = logging.getLogger("streamlib.reload")

EVERY_S = 0.5
GRACE_S = 10.0
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})


def run_reloading(command: list[str], root: Path, *, drain_s: float) -> int:
    """Run `command` until a signal ends it, anew when a .py file under `root` changes; the exit code."""
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def put(signum: int, frame: FrameType | None) -> None:
        signals.put(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, put)
    seen = _modified(root)
    child = _start(command)
    while True:
        try:
            signals.get(timeout=EVERY_S)
        except queue.Empty:
            now = _modified(root)
            if now != seen:
                changed = sorted(path for path in now.keys() | seen.keys() if now.get(path) != seen.get(path))
                _log.info("reloading", extra={"changed": changed[0], "files": len(changed)})
                seen = now
                _end(child, drain_s)
                child = _start(command)
            continue
        return _pass_on(child, signals, drain_s)


def _pass_on(child: subprocess.Popen[bytes], signals: queue.SimpleQueue[int], drain_s: float) -> int:
    """The n-th signal to us is the n-th TERM of the child."""
    child.send_signal(signal.SIGTERM)
    waited_s = 0.0
    while child.poll() is None and waited_s < drain_s + GRACE_S:
        try:
            signals.get(timeout=EVERY_S / 10)
            child.send_signal(signal.SIGTERM)
        except queue.Empty:
            waited_s += EVERY_S / 10
    child.kill()
    code = child.wait()
    # Dying of the signal itself: it was still loading and held nothing.
    return 0 if code == -signal.SIGTERM else code if code >= 0 else 128 - code


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    # A process group of its own: Ctrl-C reaches the parent alone, which passes it on once.
    return subprocess.Popen(command, process_group=0)  # noqa: S603 - our own command line


def _end(child: subprocess.Popen[bytes], drain_s: float) -> None:
    child.terminate()
    try:
        child.wait(drain_s + GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _modified(root: Path) -> dict[str, int]:
    """Every Python file under `root` and when it was changed, ns; hidden and foreign directories left out."""
    found: dict[str, int] = {}
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".") and name not in _SKIPPED]
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                try:
                    found[path] = os.stat(path).st_mtime_ns
                except FileNotFoundError:  # an editor that replaces files was faster
                    continue
    return found
