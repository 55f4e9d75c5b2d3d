"""The worker processes of the demo: started with a log of their own, asked over HTTP, ended by pid."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from streamlib.errors import StreamlibError

_HTTP = re.compile(r"http://127\.0\.0\.1:\d+")
_ROOT = Path(__file__).resolve().parents[2]
_READY_S = 30.0
_POLL_S = 0.05
_STOP_S = 10.0


class WorkerFailed(StreamlibError):
    """A worker process ended, or did not become ready."""


class WorkerProcess:
    """One `streamlib run` of the flights app."""

    def __init__(self, name: str, directory: Path, environment: Mapping[str, str]) -> None:
        """Start it; `environment` has its settings. Its log is `<directory>/<name>.log`."""
        self.name = name
        self.log_path = directory / f"{name}.log"
        command = [
            sys.executable,
            "-m",
            "streamlib",
            "run",
            "workers.flights.app:app",
            "--http",
            "127.0.0.1:0",
        ]
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        with self.log_path.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for the demo, which ends its workers itself.
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, arguments of our own
                command,
                cwd=directory,
                env={**os.environ, **environment, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait_ready(self) -> None:
        """Return when it takes events. Raises WorkerFailed, with the end of its log."""
        deadline = time.monotonic() + _READY_S
        while not await asyncio.to_thread(self._is_ready):
            self.check_running()
            if time.monotonic() > deadline:
                raise WorkerFailed(f"{self.name} is not ready after {_READY_S:g} s:\n{self._last_lines()}")
            await asyncio.sleep(_POLL_S)

    def check_running(self) -> None:
        """Raises WorkerFailed, with the end of its log, when it has ended."""
        if self._process.poll() is not None:
            raise WorkerFailed(f"{self.name} ended with code {self._process.returncode}:\n{self._last_lines()}")

    def freeze(self) -> None:
        """SIGSTOP, and wait until it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise WorkerFailed(f"{self.name} ended by itself:\n{self._last_lines()}")

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: it gets no chance to tidy up."""
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """SIGTERM: it hands back what it holds and ends. Harmless when it has ended."""
        self._process.terminate()

    def stop(self) -> None:
        """Terminate, and kill when it does not end in time; returns when it has ended."""
        self.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def http_url(self) -> str:
        """`http://127.0.0.1:<port>` of its probes and metrics, "" before it listens."""
        found = _HTTP.search(self._log())
        return found.group() if found else ""

    def _is_ready(self) -> bool:
        base = self.http_url()
        if not base:
            return False
        try:
            with urllib.request.urlopen(f"{base}/readyz", timeout=_READY_S) as answer:  # noqa: S310 - http, our own
                return bool(answer.status == 200)
        except OSError:  # not listening yet, or 503: not ready
            return False

    def _log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def _last_lines(self) -> str:
        return "\n".join(self._log().splitlines()[-5:])
