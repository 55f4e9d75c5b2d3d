"""What is wrong about TLS and what to do: files that cannot be loaded, handshakes that will fail again."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

from streamlib.errors import ConfigError

_EXPIRED = 10
"""OpenSSL's number for it."""
_CERTIFICATE_REQUIRED = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
_FINAL = frozenset({
    _CERTIFICATE_REQUIRED, "SSLV3_ALERT_HANDSHAKE_FAILURE", "SSLV3_ALERT_BAD_CERTIFICATE",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED", "SSLV3_ALERT_CERTIFICATE_UNKNOWN", "TLSV1_ALERT_UNKNOWN_CA",
    "TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE",
})  # fmt: skip
"""How a handshake ends that will end so again; everything else may be the network."""


def check_files(options: Mapping[str, Any]) -> None:
    """Load the files that a connection's options name. Raises ConfigError, which names file and setting: the client
    would take a missing one for a server that is out of reach."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authorities := options.get("ssl_ca_certs"):
        with _named("redis.ca_file (or ssl_ca_certs in redis.url)", authorities):
            context.load_verify_locations(authorities)
    if folder := options.get("ssl_ca_path"):
        with _named("ssl_ca_path in redis.url", folder):
            os.listdir(folder)
    certificate, key = options.get("ssl_certfile"), options.get("ssl_keyfile")
    if key and not certificate:
        raise ConfigError("redis.url has ssl_keyfile without ssl_certfile; name the certificate too")
    if certificate:
        with _named("ssl_certfile or ssl_keyfile in redis.url", key or certificate):
            context.load_cert_chain(certificate, key, password="")


@contextlib.contextmanager
def _named(setting: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # an SSLError is one
        why = error.strerror or str(error)
        raise ConfigError(
            f"{setting}: cannot load {path}: {why}; it must be there, readable for this process, in PEM, and a key "
            "without a password"
        ) from error


def handshake_error(error: BaseException) -> ssl.SSLError | None:
    """What ended a handshake for good, if that is behind an error of the client, which takes all for the network."""
    inner: BaseException | None = error
    seen: set[int] = set()
    while inner is not None and id(inner) not in seen:  # somebody's `raise error from error` makes a ring
        if isinstance(inner, ssl.SSLError) and (
            isinstance(inner, ssl.SSLCertVerificationError) or inner.reason in _FINAL
        ):
            return inner
        seen.add(id(inner))
        inner = inner.__cause__ or inner.__context__
    return None


def told(found: ssl.SSLError, error: Exception) -> str:
    """What the user is told of the server: what it did, and what to do."""
    if isinstance(found, ssl.SSLCertVerificationError):
        advice = "check redis.ca_file and the host's name"
        if found.verify_code == _EXPIRED:
            advice = "renew it, or set the clock of this machine"
        return f"has a certificate that we do not trust: {error}; {advice}"
    if found.reason == _CERTIFICATE_REQUIRED:
        return f"wants a certificate of ours: {error}; name one with ssl_certfile= and ssl_keyfile= in redis.url"
    return (
        f"and we do not agree on TLS: {error}; does that port speak TLS, does it want a certificate of ours "
        "(ssl_certfile= and ssl_keyfile= in redis.url), or is it older than TLS 1.2?"
    )
