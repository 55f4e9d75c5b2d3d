"""Whether Redis takes claims, outcomes and renewals; a worker whose inbox is full asks it for nothing else."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from streamlib.redisio.failures import CLIENT_ERRORS, RETRYABLE, ErrorClass, classify, error_code

_EVERYWHERE = ""


class Answering:
    """`with answering.at(stream):` around each script of a partition. An answer that is about a single key counts: what
    is refused is what no other event would be spared.

    On one server an answer for any partition counts for all of them. `apart`, they lie on many: a partition that is
    not reached says nothing of the others, while rights and credentials are refused everywhere.
    """

    def __init__(self, *, apart: bool = False) -> None:
        self._apart = apart
        self._refused: dict[str, float] = {}
        self._taken: dict[str, float] = {}

    def refuses(self, stream: str, seconds: float) -> bool:
        """Whether everything asked for this partition has been refused for so long."""
        since = self._refused.get(_EVERYWHERE, self._refused.get(stream))
        return since is not None and time.monotonic() - since >= seconds

    def takes(self, stream: str, seconds: float) -> bool:
        """Whether something was answered for this partition within that time."""
        at = self._taken.get(stream if self._apart else _EVERYWHERE)
        return at is not None and time.monotonic() - at < seconds

    @contextmanager
    def at(self, stream: str) -> Iterator[None]:
        place = stream if self._apart else _EVERYWHERE
        try:
            yield
        except CLIENT_ERRORS as error:
            error_class = classify(error)
            if error_class is ErrorClass.CONFIG and error_code(error) != "WRONGTYPE":
                self._refused.setdefault(_EVERYWHERE, time.monotonic())
            elif error_class in RETRYABLE:
                self._refused.setdefault(place, time.monotonic())
            else:
                self._answered(place)
            raise
        except Exception:
            self._answered(place)  # a partition that is another worker's by now
            raise
        self._answered(place)

    def forget_but(self, streams: Collection[str]) -> None:
        """Nothing is asked any more but for these: what was refused for others says nothing about now."""
        kept = {*streams, _EVERYWHERE} if streams else set()
        for one in [one for one in list(self._refused) if one not in kept]:
            self._refused.pop(one, None)

    def _answered(self, place: str) -> None:
        self._taken[place] = time.monotonic()
        for one in (place, _EVERYWHERE):
            self._refused.pop(one, None)
