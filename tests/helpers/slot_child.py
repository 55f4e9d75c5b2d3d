"""A process under a supervisor, reduced to its channel and its signals; told what to do by files in a directory.

Run as `slot_child.py DIR [--burst]`. It appends what happens to it to `DIR/<slot>.log` ("start PID", "TERM n",
"INT n") and looks for `DIR/<slot>.exit` (end at once with this code), `DIR/<slot>.code` (the code to end with on
the first TERM), `DIR/<slot>.stubborn` (the first two TERMs do not end it) and `DIR/<slot>.unready`.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from streamlib.metrics.exposition import render
from streamlib.metrics.slots import SlotChannel
from streamlib.metrics.worker import WorkerMetrics


class Child:
    """One slot's behaviour."""

    def __init__(self, directory: Path, channel: SlotChannel) -> None:
        self.directory = directory
        self.channel = channel
        self.metrics = WorkerMetrics(server="none")
        self.terms = 0
        self.end = threading.Event()
        self.code = 0

    def told(self, name: str) -> str | None:
        path = self.directory / f"{self.channel.slot}.{name}"
        return path.read_text() if path.exists() else None

    def note(self, text: str) -> None:
        with (self.directory / f"{self.channel.slot}.log").open("a") as log:
            log.write(f"{text}\n")

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.terms += 1
        self.note(f"{signal.Signals(signum).name.removeprefix('SIG')} {self.terms}")
        if self.terms >= 3:
            os._exit(143)
        if self.told("stubborn") is None:
            self.code = int(self.told("code") or 0)
            self.end.set()

    def ready(self) -> tuple[bool, str]:
        return (True, "ready") if self.told("unready") is None else (False, "connecting")

    def run(self) -> int:
        if (code := self.told("exit")) is not None:
            self.note(f"exit {code}")
            return int(code)
        signal.signal(signal.SIGTERM, self.on_signal)
        signal.signal(signal.SIGINT, self.on_signal)
        self.note(f"start {os.getpid()}")
        self.metrics.group("t", "g").received("new", self.channel.slot + 1)
        self.channel.serve(lambda accept: render(self.metrics.registry, accept), lambda: (True, "alive"), self.ready)
        if "--burst" in sys.argv:
            return self.code
        while not self.end.wait(0.05):  # short, so that signal handlers run
            pass
        return self.code


if __name__ == "__main__":
    found = SlotChannel.from_environ()
    assert found is not None, "started without a supervisor"
    sys.exit(Child(Path(sys.argv[1]), found).run())
