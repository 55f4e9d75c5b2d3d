"""Processes of the tests: signals by pid, and knowing that a signal has arrived."""

import os
import signal
import subprocess
from pathlib import Path

from tests.helpers.waiting import wait_until


def stop_process(process: subprocess.Popen[bytes]) -> None:
    """SIGSTOP, and return only once the process really stands still (where /proc can tell)."""
    process.send_signal(signal.SIGSTOP)
    if Path("/proc/self/stat").exists():
        wait_until(lambda: process_state(process.pid) in ("T", "t"), what=f"process {process.pid} is stopped")


def process_state(pid: int) -> str:
    """The one-letter state from /proc: R, S, D, T, Z; "" when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def is_alive(pid: int) -> bool:
    """Does a process with this pid exist (a zombie counts as dead where /proc can tell)?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return process_state(pid) != "Z"


def end_process(process: subprocess.Popen[bytes], *, grace_s: float = 10) -> int:
    """SIGTERM, then SIGKILL after the grace; works on stopped processes too. Returns the exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        try:
            return process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()
