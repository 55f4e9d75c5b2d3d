"""A password that is searched for in everything that comes out, and the ways to give it."""

import base64
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from msgspec import Struct

USER = "app"
FRAGMENT = "Q7canaryZ2"
"""Letters and digits: it stays as it is percent-encoded, quoted by repr or JSON, and in half a password."""
PASSWORD = f'p@ss/w:ord%?#&"{FRAGMENT}'
WRONG = f"n@t-{FRAGMENT}/?"


class Given(Struct, frozen=True):
    """How a password is given: what the environment says. `url` is the address, wherever it stands."""

    url: str
    environment: dict[str, str]


def add_user(client: redis.Redis) -> None:
    """A user with all rights beside the tests' own."""
    ask: Any = client.execute_command
    ask("ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all")


def with_login(url: str, password: str = PASSWORD) -> str:
    return url.replace("://", f"://{USER}:{quote(password, safe='')}@", 1)


def give(way: str, url: str, directory: Path, password: str = PASSWORD) -> Given:
    """`url` is without a login. Ways: environment, settings file, password file, option."""
    if way == "settings file":
        (directory / "streamlib.toml").write_text(f'[redis]\nurl = "{with_login(url, password)}"\n')
        return Given(with_login(url, password), {})
    if way == "password file":
        (directory / "password").write_text(f"{password}\n")
        named = url.replace("://", f"://{USER}@", 1)
        files = {"STREAMLIB_REDIS_PASSWORD_FILE": str(directory / "password")}
        return Given(named, {"STREAMLIB_REDIS_URL": named, **files})
    if way == "option":
        mark = "&" if "?" in url else "?"
        url = f"{url}{mark}username={USER}&password={quote(password, safe='')}"
    else:
        url = with_login(url, password)
    return Given(url, {"STREAMLIB_REDIS_URL": url})


def leaks(text: str) -> list[str]:
    """The places where the password stands, in any form."""
    forms = [FRAGMENT, *(_in_base64(FRAGMENT, at) for at in range(3))]
    return [text[max(at - 200, 0) : at + 80] for form in forms if (at := text.find(form)) >= 0]


def assert_hidden(texts: Mapping[str, str]) -> None:
    found = {name: places for name, text in texts.items() if (places := leaks(text))}
    assert not found, f"the password stands in: {found}"


def stored(client: redis.Redis) -> str:
    """All keys and what is in them, as text."""
    client.response_callbacks.clear()
    ask: Any = client.execute_command
    reads = {
        b"string": ("GET",), b"hash": ("HGETALL",), b"list": ("LRANGE", 0, -1), b"set": ("SMEMBERS",),
        b"zset": ("ZRANGE", 0, -1), b"stream": ("XRANGE", "-", "+"),
    }  # fmt: skip
    texts = []
    for key in ask("KEYS", "*"):
        name, *rest = reads[ask("TYPE", key)]
        texts.append(f"{key!r}: {ask(name, key, *rest)!r}")
    return "\n".join(texts)


def command_lines(parent: int) -> str:
    """The command lines of a process and of its children, one a line."""
    texts = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it ended while we looked
            its_parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in (its_parent, int(directory.name)):
                texts.append((directory / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return "\n".join(texts)


def _in_base64(text: str, before: int) -> str:
    """What stays of a text in base64 whatever stands around it, when `before` bytes of its first triple come before."""
    raw = base64.b64encode(b"\0" * before + text.encode()).decode()
    return raw[4 if before else 0 : len(raw) - 4]
