"""Where a worker's CPU time goes: samples the stack by a timer of CPU time and sorts the samples into stages."""

import signal
from collections import Counter
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import streamlib

EVERY_S = 0.001
ROOT = str(Path(streamlib.__file__).parent)

# The first of these that a stack holds, from its innermost frame outwards, is its stage: file, function ("" for any).
STAGES: tuple[tuple[str, str, str], ...] = (
    ("codec.py", "decode", "decode the event"),
    ("codec.py", "refuse_nan", "refuse NaN"),
    ("codec.py", "", "read the envelope"),
    ("redisio/reader.py", "_receive", "read the envelope"),
    ("metrics/worker.py", "", "metrics"),
    ("redisio/settler.py", "", "settle"),
    ("worker/settling.py", "", "settle"),
    ("redisio/claims.py", "", "claim"),
    ("worker/context.py", "", "lanes and handlers"),
    ("worker/executor.py", "", "lanes and handlers"),
    ("worker/lanes.py", "", "lanes and handlers"),
    ("worker/inflight.py", "", "admission"),
    ("worker/consumer.py", "_claim", "claim"),
    ("worker/consumer.py", "", "admission"),
    ("redisio/reader.py", "", "fetch"),
    ("worker/fetcher.py", "", "fetch"),
)
OTHER = "event loop, house-keeping"
CLIENT = "redis-py: "


def stage(frame: FrameType | None) -> str:
    """The stage of a stack; what redis-py does for one is told apart from what we do."""
    in_client = False
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT):
            inside = name[len(ROOT) + 1 :]
            for file, function, found in STAGES:
                if inside == file and function in ("", frame.f_code.co_name):
                    return CLIENT + found if in_client else found
        elif "/redis/" in name:
            in_client = True
        frame = frame.f_back
    return CLIENT + "elsewhere" if in_client else OTHER


class Sampler:
    """A context manager; `shares()` afterwards."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def shares(self) -> dict[str, float]:
        """Part of the samples per stage, the largest first."""
        total = self._counts.total()
        return {name: count / total for name, count in self._counts.most_common()}

    def __enter__(self) -> Self:
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _sample(self, signum: int, frame: FrameType | None) -> None:
        self._counts[stage(frame)] += 1
