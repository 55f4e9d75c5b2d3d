"""Whether Redis takes the claims and outcomes of a group; a worker whose inbox is full asks it for nothing else."""

from __future__ import annotations

import time

from streamlib.redisio.failures import CLIENT_ERRORS, RETRYABLE, ErrorClass, classify, error_code

_REFUSED = RETRYABLE | {ErrorClass.CONFIG}


class Answering:
    """`with answering:` around each claim and settle script. An answer for any partition counts, and so does one that
    is about a single key: what is refused is what no other event would be spared."""

    def __init__(self) -> None:
        self._refused_since: float | None = None

    def within(self, seconds: float) -> bool:
        """False when everything was refused for so long."""
        since = self._refused_since
        return since is None or time.monotonic() - since < seconds

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CLIENT_ERRORS) and classify(error) in _REFUSED and error_code(error) != "WRONGTYPE":
            self._refused_since = self._refused_since or time.monotonic()
        else:
            self._refused_since = None
