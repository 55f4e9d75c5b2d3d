"""Reads redis.url before a client sees it: a client overlooks what it does not understand, and writes elsewhere."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import SplitResult, parse_qs, parse_qsl, unquote, urlsplit

from msgspec import Struct

from streamlib.errors import ConfigError
from streamlib.settings import redact

_SINGLE = ("redis", "rediss", "unix")
_DEFAULT_PORT = {"redis": 6379, "rediss": 6379, "sentinel": 26379, "cluster": 6379}
# Anything else would change what replies look like, how long we wait and what is sent twice.
_QUERY = ("db", "username", "password", "client_name")
_TLS_QUERY = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_SENTINEL_QUERY = (*_QUERY, "sentinel_username", "sentinel_password", "tls", *_TLS_QUERY)
_CLUSTER_QUERY = ("username", "password", "client_name", "tls", *_TLS_QUERY)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:\[\],]+)(?::([0-9]{1,5}))?")
_YES_OR_NO = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_FORMS = (
    "redis://host:port/db, rediss:// (the same over TLS), unix:///path?db=n, sentinel://host:port,host:port/name, "
    "cluster://host:port,host:port or embedded://DIR"
)

Host = tuple[str, int]


class Address(Struct, frozen=True, kw_only=True):
    """What an address says. `options` and `sentinel_options` are those of redis-py's connections."""

    scheme: str
    hosts: tuple[Host, ...] = ()
    name: str = ""
    tls: bool = False
    options: dict[str, Any] = {}
    sentinel_options: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Address({self.scheme}://{','.join(f'{host}:{port}' for host, port in self.hosts)})"


def read_address(url: str) -> Address:
    """An address of any form. For redis://, rediss:// and unix:// redis-py reads the rest itself, as it was meant.

    Raises ConfigError, whose message shows no password.
    """
    parts = _split(url)
    if parts.scheme == "embedded":
        raise ConfigError(f"redis.url {url}: the embedded server was not started; use an App or the CLI")
    if parts.scheme not in (*_SINGLE, "sentinel", "cluster") or not url.startswith(f"{parts.scheme}://"):
        raise _wrong(url, "no address of Redis")
    if parts.scheme != "unix" and "@" in parts.path + parts.query + parts.fragment:
        raise _wrong(url, "a password with / ? or # in it must be percent-encoded")
    if parts.fragment:
        raise _wrong(url, "what follows # is no part of an address; in a password it must be percent-encoded")
    if parts.scheme in _SINGLE:
        return _single(url, parts)
    return _several(url, parts)


def is_encrypted(url: str) -> bool:
    """Whether the address asks for TLS. Raises as `read_address`."""
    return read_address(url).tls


def is_verified(url: str) -> bool:
    """Whether a server under TLS must show that it is the one; False where the address lets it off."""
    options = dict(parse_qsl(_split(url).query))
    host = _YES_OR_NO.get(options.get("ssl_check_hostname", "1").lower(), True)
    return options.get("ssl_cert_reqs") != "none" and host


def database_of(url: str) -> int:
    """The number of the database. Raises ConfigError, whose message shows no password."""
    parts = _split(url)
    given = parse_qs(parts.query).get("db") or [parts.path.strip("/") if parts.scheme in ("redis", "rediss") else ""]
    return int(given[0]) if given[0].isdigit() else 0


def _single(url: str, parts: SplitResult) -> Address:
    tls = parts.scheme == "rediss"
    given = _options(url, parts, _QUERY + (_TLS_QUERY if tls else ()))
    if parts.scheme == "unix":
        if parts.netloc.rpartition("@")[2] or not parts.path:
            raise _wrong(url, "the path of a socket is absolute: three slashes")
        return Address(scheme="unix")
    if len(_hosts(url, parts)) > 1:
        raise _wrong(url, f"{parts.scheme}:// leads to one server; several are sentinel:// or cluster://")
    if parts.path.strip("/") and not parts.path.strip("/").isdigit():
        raise _wrong(url, f"the database is a number, not {parts.path.strip('/')!r}")
    return Address(scheme=parts.scheme, tls=tls, options=_encryption(url, given, tls=tls))


def _several(url: str, parts: SplitResult) -> Address:
    sentinel = parts.scheme == "sentinel"
    name = unquote(parts.path.strip("/"))
    if not sentinel:
        _refuse_databases(url, parts)
    given = _options(url, parts, _SENTINEL_QUERY if sentinel else _CLUSTER_QUERY)
    if sentinel and (not name or "/" in name):
        raise _wrong(url, "after the sentinels stands the name under which they know the primary: /name")
    tls = _yes_or_no(url, "tls", given.get("tls", "0"))
    encryption = _encryption(url, given, tls=tls)
    return Address(
        scheme=parts.scheme,
        hosts=_hosts(url, parts),
        name=name,
        tls=tls,
        options=_login(parts, given) | _database(url, given) | encryption,
        sentinel_options=_sentinel_login(given) | encryption,
    )


def _refuse_databases(url: str, parts: SplitResult) -> None:
    if parts.path.strip("/") or "db" in parse_qs(parts.query, keep_blank_values=True):
        raise _wrong(url, "a cluster has one database and no name; leave both out")


def _options(url: str, parts: SplitResult, allowed: tuple[str, ...]) -> dict[str, str]:
    """The options behind the question mark, each given once."""
    found: dict[str, str] = {}
    for name, values in parse_qs(parts.query, keep_blank_values=True).items():
        if name not in allowed:
            raise _wrong(url, f"unknown option {name!r}, there are {', '.join(allowed)}")
        if len(values) > 1:
            raise _wrong(url, f"option {name!r} stands there twice")
        found[name] = values[0]
    return found


def _hosts(url: str, parts: SplitResult) -> tuple[Host, ...]:
    """Every host with its port. What is refused is not quoted: it may be half a password."""
    text = parts.netloc.rpartition("@")[2]
    if not text and parts.scheme in ("redis", "rediss"):
        return ()
    found: list[Host] = []
    for one in text.split(","):
        match = _HOST.fullmatch(one)
        if match is None and ":" in one.rpartition("]")[2]:
            raise _wrong(url, "the port is no number from 1 to 65535, or the password is not percent-encoded")
        if match is None:
            raise _wrong(url, "a host is missing or malformed")
        port = int(match[2] or _DEFAULT_PORT[parts.scheme])
        if not 1 <= port <= 65_535:
            raise _wrong(url, "the port is no number from 1 to 65535, or the password is not percent-encoded")
        found.append((match[1].strip("[]"), port))
    if len(set(found)) < len(found):
        raise _wrong(url, "a host stands there twice")
    return tuple(found)


def _login(parts: SplitResult, given: dict[str, str]) -> dict[str, Any]:
    """Who we are for the servers that hold the data; the options win over user:password@."""
    user, colon, password = parts.netloc.rpartition("@")[0].partition(":")
    login = {
        "username": given.get("username") or unquote(user) or None,
        "password": given.get("password") or (unquote(password) if colon else None) or None,
        "client_name": given.get("client_name") or None,
    }
    return {name: value for name, value in login.items() if value is not None}


def _sentinel_login(given: dict[str, str]) -> dict[str, Any]:
    login = {"username": given.get("sentinel_username"), "password": given.get("sentinel_password")}
    return {name: value for name, value in login.items() if value}


def _database(url: str, given: dict[str, str]) -> dict[str, Any]:
    db = given.get("db", "0")
    if not db.isdigit():
        raise _wrong(url, "the database (db=) is a number")
    return {"db": int(db)} if int(db) else {}


def _encryption(url: str, given: dict[str, str], *, tls: bool) -> dict[str, Any]:
    """The options of TLS as redis-py's connections want them; what is not said is verified."""
    options: dict[str, Any] = {name: given[name] for name in _TLS_QUERY if name in given}
    if options and not tls:
        raise _wrong(url, f"option {next(iter(options))!r} is for tls=1")
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = _yes_or_no(url, "ssl_check_hostname", options["ssl_check_hostname"])
    if options.get("ssl_cert_reqs", "required") not in ("required", "optional", "none"):
        raise _wrong(url, "ssl_cert_reqs is required, optional or none")
    return options


def _yes_or_no(url: str, name: str, text: str) -> bool:
    if text.lower() not in _YES_OR_NO:
        raise _wrong(url, f"{name} is 1 or 0")
    return _YES_OR_NO[text.lower()]


def _split(url: str) -> SplitResult:
    """Without the words of urlsplit's own errors: they quote what may be half a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = None
    if parts is None:
        raise _wrong(url, "the host is malformed")
    return parts


def _wrong(url: str, reason: str) -> ConfigError:
    return ConfigError(f"redis.url {redact(url).partition('?')[0]}: {reason}; use {_FORMS}")
