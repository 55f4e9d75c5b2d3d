"""Checks redis.url before a client sees it: a client overlooks what it does not understand, and writes elsewhere."""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qs, urlsplit

from streamlib.errors import ConfigError
from streamlib.settings import redact

_SCHEMES = ("redis", "rediss", "unix")
_LATER_SCHEMES = ("sentinel", "cluster")
# Anything else would change what replies look like, how long we wait and what is sent twice.
_QUERY = ("db", "username", "password", "client_name")
_TLS_QUERY = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_FORMS = "redis://host:port/db, rediss:// (the same over TLS), unix:///path?db=n or embedded://DIR"


def check_address(url: str) -> str:
    """The scheme of an address that redis-py understands as it was meant.

    Raises ConfigError, whose message shows no password.
    """
    parts = _split(url)
    if parts.scheme == "embedded":
        raise ConfigError(f"redis.url {url}: the embedded server was not started; use an App or the CLI")
    if parts.scheme in _LATER_SCHEMES:
        raise ConfigError(f"redis.url {redact(url)}: {parts.scheme}:// is not supported by this version")
    if parts.scheme not in _SCHEMES or not url.startswith(f"{parts.scheme}://"):
        raise _wrong(url, "no address of Redis")
    if parts.scheme != "unix" and "@" in parts.path + parts.query + parts.fragment:
        raise _wrong(url, "a password with / ? or # in it must be percent-encoded")
    options = _QUERY + (_TLS_QUERY if parts.scheme == "rediss" else ())
    for name in parse_qs(parts.query, keep_blank_values=True):
        if name not in options:
            raise _wrong(url, f"unknown option {name!r}, there are {', '.join(options)}")
    if parts.scheme == "unix":
        if parts.netloc.rpartition("@")[2] or not parts.path:
            raise _wrong(url, "the path of a socket is absolute: three slashes")
    elif parts.path.strip("/") and not parts.path.strip("/").isdigit():
        raise _wrong(url, f"the database is a number, not {parts.path.strip('/')!r}")
    return parts.scheme


def _split(url: str) -> SplitResult:
    """Without the words of urlsplit's own errors: they quote what may be half a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = None
    if parts is None:
        raise _wrong(url, "the host is malformed")
    try:
        port_is_right = parts.port != 0
    except ValueError:
        port_is_right = False
    if not port_is_right:
        raise _wrong(url, "the port is no number from 1 to 65535, or the password is not percent-encoded")
    return parts


def _wrong(url: str, reason: str) -> ConfigError:
    return ConfigError(f"redis.url {redact(url).partition('?')[0]}: {reason}; use {_FORMS}")
