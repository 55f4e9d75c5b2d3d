"""The channel between a supervisor and its processes: the parent asks for metrics and probes.

Each child has a number, its *slot*, which stays over restarts, and one end of a socket pair. A message is
four bytes of length and msgpack. End of file tells either side that the other one is gone.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterable, MutableMapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Self

import msgspec
from msgspec import Struct

from streamlib.errors import ConfigError
from streamlib.metrics.http import Probe, Render

ENV = "STREAMLIB_SLOT"
MAX_MESSAGE = 64 * 1024 * 1024
MAX_UNANSWERED = 16
_HEAD = struct.Struct("!I")

_log = logging.getLogger("streamlib.slots")


class Question(Struct, frozen=True, array_like=True):
    """`accept` None asks for the probes only. `number` comes back with the answer."""

    number: int
    accept: str | None


class Answer(Struct, frozen=True, array_like=True):
    """The child's two probes and, if asked for, its metrics."""

    number: int
    live: bool
    live_text: str
    ready: bool
    ready_text: str
    content_type: str = ""
    body: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_questions = msgspec.msgpack.Decoder(Question)
_answers = msgspec.msgpack.Decoder(Answer)


class SlotChannel:
    """The child's end. Metrics and probes go through it instead of a port of the child's own."""

    def __init__(self, slot: int, connection: socket.socket) -> None:
        self.slot = slot
        self._socket = connection

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str] = os.environ) -> Self | None:
        """The channel this process was started with, None without a supervisor.

        It is taken out of the environment: what a handler starts must not use it. Raises ConfigError.
        """
        value = environ.pop(ENV, None)
        if value is None:
            return None
        slot, colon, fd = value.partition(":")
        if not (colon and slot.isdigit() and fd.isdigit()):
            raise ConfigError(f"{ENV}={value!r} is set by the supervisor of `run -p`; unset it")
        try:
            connection = socket.socket(fileno=int(fd))
        except OSError as error:
            raise ConfigError(f"{ENV}={value!r}: {error}; it is set by the supervisor of `run -p`, unset it") from error
        connection.set_inheritable(False)
        return cls(int(slot), connection)

    def serve(self, render: Render, live: Probe, ready: Probe) -> None:
        """Answer from a daemon thread. When the parent dies, this process gets a SIGTERM: it drains."""
        threading.Thread(target=self._serve, args=(render, live, ready), name="streamlib-slot", daemon=True).start()

    def _serve(self, render: Render, live: Probe, ready: Probe) -> None:
        try:
            # Closing at the end tells the parent: it would take silence for a process that hangs.
            with self._socket:
                while (message := _receive(self._socket)) is not None:
                    _send(self._socket, _encode(_answer(_questions.decode(message), render, live, ready)))
        except (BrokenPipeError, ConnectionResetError):
            _log.debug("slot_parent_gone_while_answering")
        finally:
            _log.warning("slot_parent_gone", extra={"slot": self.slot})
            os.kill(os.getpid(), signal.SIGTERM)


def _answer(question: Question, render: Render, live: Probe, ready: Probe) -> Answer:
    content_type, body = ("", b"")
    if question.accept is not None:
        try:
            content_type, body = render(question.accept)
        except Exception:  # noqa: BLE001 - a collector of the user may fail; the probes must go on
            _log.exception("slot_render_failed")
    is_live, live_text = live()
    is_ready, ready_text = ready()
    return Answer(question.number, is_live, live_text, is_ready, ready_text, content_type, body)


class SlotLink:
    """The parent's end of one child's channel. A thread receives, so no child delays another."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.answered = False
        """Has the child answered at least once? Before that it is still loading its app."""
        self._socket, self._childs = socket.socketpair()
        self._socket.settimeout(1.0)
        self._lock = threading.Lock()
        self._number = 0
        self._last_answered = 0
        self._waiting: dict[int, Future[Answer]] = {}
        self._closed_s: float | None = None
        self._receiver = threading.Thread(target=self._receive, name=f"streamlib-slot-{slot}", daemon=True)

    @property
    def child_fd(self) -> int:
        """To be passed on to the child, together with `environ`."""
        return self._childs.fileno()

    @property
    def environ(self) -> dict[str, str]:
        return {ENV: f"{self.slot}:{self.child_fd}"}

    def started(self) -> None:
        """The child has its end: give up ours of it, so that its death is an end of file."""
        self._childs.close()
        self._receiver.start()

    def ask(self, accept: str | None) -> Future[Answer]:
        """Send a question; the future fails with ConnectionError when the child cannot be reached."""
        future: Future[Answer] = Future()
        with self._lock:
            if self._closed_s is not None or self._number - self._last_answered >= MAX_UNANSWERED:
                future.set_exception(ConnectionError("the process is gone or hangs"))
                return future
            self._number += 1
            self._waiting[self._number] = future
            try:
                _send(self._socket, _encode(Question(self._number, accept)))
            except OSError as error:
                # Part of a question may be out: whatever follows it would be read as garbage.
                self._close(f"the process takes no questions: {error}")
        return future

    def forget(self, future: Future[Answer]) -> None:
        """Nobody waits for this answer any more."""
        with self._lock:
            self._waiting = {number: kept for number, kept in self._waiting.items() if kept is not future}

    def close(self) -> None:
        with self._lock:
            self._close("the process is gone")
        self._childs.close()
        if self._receiver.is_alive():
            self._receiver.join()
        self._socket.close()

    def closed_within(self, seconds: float) -> bool:
        """Was it open so long ago and is not now? Mostly the process is dead and about to be reaped."""
        closed_s = self._closed_s
        return closed_s is not None and time.monotonic() - closed_s <= seconds

    def _close(self, why: str) -> None:
        if self._closed_s is None:
            self._closed_s = time.monotonic()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(ConnectionError(why))
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            _log.debug("slot_channel_was_gone", extra={"slot": self.slot})

    def _receive(self) -> None:
        try:
            while (message := _receive(self._socket)) is not None:
                answer = _answers.decode(message)
                self.answered = True
                with self._lock:
                    self._last_answered = answer.number
                    future = self._waiting.pop(answer.number, None)
                    if future is not None:
                        future.set_result(answer)
        except (OSError, msgspec.DecodeError) as error:
            _log.debug("slot_channel_broke", extra={"slot": self.slot, "error": str(error)})
        with self._lock:
            self._close("the process closed its channel")


def ask_all(links: Iterable[SlotLink], accept: str | None, timeout_s: float) -> dict[int, Answer | None]:
    """Ask every child at once and wait `timeout_s` in all; None for a child that did not answer."""
    asked = [(link, link.ask(accept)) for link in links]
    deadline = time.monotonic() + timeout_s
    answers: dict[int, Answer | None] = {}
    for link, future in asked:
        try:
            answers[link.slot] = future.result(max(deadline - time.monotonic(), 0))
        except (ConnectionError, FutureTimeout):
            link.forget(future)
            answers[link.slot] = None
    return answers


def _send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(_HEAD.pack(len(message)) + message)


def _receive(connection: socket.socket) -> bytes | None:
    """The next message, None at the end of file."""
    head = _read(connection, _HEAD.size)
    if head is None:
        return None
    (size,) = _HEAD.unpack(head)
    if size > MAX_MESSAGE:
        raise ConnectionError(f"a message of {size} bytes")
    return _read(connection, size)


def _read(connection: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = connection.recv(min(size - len(parts), 1 << 20))
        except TimeoutError:  # only sending has a time limit
            continue
        if not part:
            return None
        parts += part
    return bytes(parts)
