"""Worker processes: `streamlib run` as a user starts it, to be killed, frozen, stopped and asked."""

import contextlib
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from tests.helpers import recovery
from tests.helpers.processes import end_process, stop_process
from tests.helpers.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
READY_S = 30.0
_HTTP = re.compile(r"http://127\.0\.0\.1:\d+")
_NUMBERS = count(1)


class WorkerProc:
    """One `python -m streamlib run APP --redis URL --http 127.0.0.1:0 *args`, its output in a file.

    `cwd` is where the app's module lies; the log goes to `log_dir`, which is `cwd` by default. `env` is added
    to this process's environment, whose own STREAMLIB_* settings are left out. As a context manager it starts
    on entry, and on exit the process and everything it started are gone. `command` replaces the command line.
    """

    def __init__(
        self,
        app: str,
        redis_url: str,
        *args: str,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        log_dir: Path | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        self.app = app
        self.command = list(command) if command is not None else _run_command(app, redis_url, args)
        self.cwd = cwd
        self.log_path = (log_dir or cwd) / f"worker-{next(_NUMBERS)}.log"
        self._env = _environment(cwd) | dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        return self._started().pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        if self.running:
            raise RuntimeError(f"the worker of {self.app} already runs as pid {self.pid}")
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            # A session of its own: its id is also the id of the process group that __exit__ ends.
            self._process = subprocess.Popen(
                self.command,
                cwd=self.cwd,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def wait_ready(self, timeout: float = READY_S) -> Self:
        """Wait until /readyz says 200. Raises AssertionError with the log when the worker ends before."""
        wait_until(self._ready, timeout, what=f"worker of {self.app} is ready, see {self.log_path}")
        return self

    def wait(self, timeout: float = READY_S) -> int:
        """Wait for the end and return the exit code (minus the signal's number when a signal ended it)."""
        wait_until(lambda: not self.running, timeout, what=f"worker of {self.app} ends, see {self.log_path}")
        return self._started().wait()

    def kill9(self) -> None:
        """SIGKILL, and wait for the end."""
        self._started().kill()
        self._started().wait()
        recovery.struck()

    def stop(self) -> None:
        """Freeze the process (SIGSTOP); its connections stay open."""
        stop_process(self._started())
        recovery.struck()

    def cont(self) -> None:
        """Let a frozen process go on (SIGCONT)."""
        self._started().send_signal(SIGCONT)
        recovery.struck()

    def term(self) -> None:
        """Ask for a drain (SIGTERM); a second one cancels handlers, a third ends at once."""
        self._started().send_signal(SIGTERM)

    def log(self) -> str:
        """Everything the worker wrote to stderr and stdout so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def http_url(self) -> str:
        """`http://127.0.0.1:<port>` as the worker logged it since its last start, "" before it did."""
        found = _HTTP.search(self.log(), self._log_start)
        return found.group() if found else ""

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an HTTP GET at the worker; (0, "") when it does not answer."""
        if not (base := self.http_url()):
            return 0, ""
        try:
            with urllib.request.urlopen(base + path, timeout=5) as answer:  # noqa: S310 - the worker's own port
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics: `name{label="value",...}` with labels sorted by name -> value."""
        return {_sample_name(name, labels): value for name, labels, value in self._samples()}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that carry these labels; 0 when there are none."""
        wanted = labels.items()
        return sum(value for found, has, value in self._samples() if found == name and wanted <= has.items())

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        if error is not None:
            print(f"--- {self.log_path}\n{self.log()[-4000:]}")
        with contextlib.suppress(ProcessLookupError):  # all of them had ended
            os.killpg(self._process.pid, SIGKILL)
        end_process(self._process)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"the worker of {self.app} was not started")
        return self._process

    def _ready(self) -> bool:
        if not self.running:
            code = self._started().returncode
            raise AssertionError(f"worker of {self.app} ended with {code} before it was ready:\n{self.log()[-4000:]}")
        return self.get("/readyz")[0] == 200

    def _samples(self) -> list[tuple[str, dict[str, str], float]]:
        status, text = self.get("/metrics")
        if status != 200:
            raise AssertionError(f"/metrics of {self.app} answered {status}: {text[:500]}")
        return [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]


def _run_command(app: str, redis_url: str, args: Sequence[str]) -> list[str]:
    return [
        sys.executable,
        "-m",
        "streamlib",
        "run",
        app,
        "--redis",
        redis_url,
        "--http",
        "127.0.0.1:0",
        *args,
    ]


def _environment(cwd: Path) -> dict[str, str]:
    """This process's environment without settings of its own, with the app and the project importable."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIB_")}
    path = os.pathsep.join(filter(None, [str(cwd), str(ROOT), inherited.get("PYTHONPATH", "")]))
    return inherited | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _sample_name(name: str, labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name
