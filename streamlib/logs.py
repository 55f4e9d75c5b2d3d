"""Logging to stderr: a constant event name with fields, as a line for people or a JSON object for machines.

Any code logs with the standard library: `log.info("worker_started", extra={"worker": id, "groups": groups})`.
What stands in `extra` becomes fields. Whatever is written passes two filters here: passwords go, and control
characters (line feeds, terminal escapes) are made visible, so that no text can forge or hide a line.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import quote, unquote, unquote_plus, urlsplit

from streamlib.settings import LogSettings

MAX_TEXT = 8_000
HIDDEN = "***"

# C0 and C1 controls, DEL, line and paragraph separators, and the marks that reorder text on a screen.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_BUT_LINES = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))
_PASSWORD_IN_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s/:@'\"]*):[^\s/'\"]+@")
_PASSWORD_OPTION = re.compile(r"([?&]\w*password=)[^\s&'\"]+")
_SECRET_NAME = re.compile(r"(?i)(?:password|passwd|secret|token|authorization|credential|api_?key)\w*$")
_SHORT_NAMES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_EXC_INFO = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "fields"}
_TOP = ("ts", "level", "event", "logger", "exception")


def setup_logging(settings: LogSettings, *, secrets: Iterable[str] = (), stream: TextIO | None = None) -> None:
    """Send all logging to `stream` (stderr) in the chosen format; replaces what was set up before.

    Texts in `secrets` never come out, wherever they stand; `secrets_of(url)` has those of an address.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    shape = JsonFormatter if settings.format == "json" else ConsoleFormatter
    handler.setFormatter(shape(secrets))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.level.upper())
    # Every connection and task would tell its life at this level.
    logging.getLogger("asyncio").setLevel(max(root.level, logging.INFO))


def neutralise(text: str, *, keep_lines: bool = False) -> str:
    """`text` with its control characters written out (`\\n`, `\\x1b`); `keep_lines` leaves line feeds."""
    return (_UNSAFE_BUT_LINES if keep_lines else _UNSAFE).sub(_written_out, text)


def hide_passwords(text: str) -> str:
    """`text` without the passwords of the addresses in it."""
    return _PASSWORD_OPTION.sub(rf"\1{HIDDEN}", _PASSWORD_IN_URL.sub(rf"\1:{HIDDEN}@", text))


def secrets_of(url: str) -> list[str]:
    """The passwords of an address as they stand and decoded, [] if it has none. Any text may come."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return []
    user, found, _ = parts.netloc.rpartition("@")
    given = [user.partition(":")[2] if found else ""]
    options = (option.partition("=") for option in parts.query.split("&"))
    given += [value for name, _, value in options if unquote(name).endswith("password")]
    decoded = forms_of(*map(unquote, given), *map(unquote_plus, given))
    return sorted({*given, *decoded} - {""}, key=len, reverse=True)


def forms_of(*passwords: str) -> list[str]:
    """Each password as it is, percent-encoded and as Python would write it, the longest first."""
    forms = {form for one in passwords for form in (one, quote(one, safe=""), repr(one)[1:-1])}
    return sorted(forms - {""}, key=len, reverse=True)


class _Formatter(logging.Formatter):
    """What both formats share: fields of a record, and texts that are safe to write."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        # A secret of one or two characters would blank half of every line.
        self._secrets = [secret for secret in secrets if len(secret) > 2]

    def _text(self, value: object) -> str:
        text = value if isinstance(value, str) else str(value)
        # Cut after hiding: half a password is none that anybody recognises. Far behind the cut nothing matters.
        shown = self._hidden(text[: 2 * MAX_TEXT])
        return shown if len(text) <= MAX_TEXT else f"{shown[:MAX_TEXT]}... ({len(text)} characters)"

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return hide_passwords(text)

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        inner = getattr(record, "fields", None)
        if isinstance(inner, Mapping):
            fields |= {str(name): value for name, value in inner.items()}
        return {name: HIDDEN if _SECRET_NAME.search(name) else value for name, value in fields.items()}

    def _plain(self, value: object) -> Any:
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float):
            return value if value == value and abs(value) != float("inf") else str(value)
        if isinstance(value, Mapping):
            return {
                str(name): HIDDEN if _SECRET_NAME.search(str(name)) else self._plain(inner)
                for name, inner in value.items()
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [self._plain(inner) for inner in value]
        return neutralise(self._text(value), keep_lines=True)

    def _traceback(self, info: _EXC_INFO | None) -> str:
        if not info or info[1] is None:
            return ""
        text = self._hidden("".join(traceback.format_exception(info[1]))[-2 * MAX_TEXT :].rstrip())
        return f"...{text[-MAX_TEXT + 100 :]}" if len(text) > MAX_TEXT else text


class ConsoleFormatter(_Formatter):
    """`12:30:01.123 INFO  worker_started worker=ab12 groups=email`; tracebacks follow, indented."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        parts = [f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}", f"{record.levelname:<7}"]
        parts.append(neutralise(self._text(record.getMessage())))
        parts += [f"{neutralise(name)}={self._shown(value)}" for name, value in self._fields(record).items()]
        lines = [" ".join(parts)]
        # Indented, so that no line of a foreign text can pass for one of ours.
        lines += [
            f"    {neutralise(line, keep_lines=True)}" for line in self._traceback(record.exc_info).split("\n") if line
        ]
        return "\n".join(lines)

    def _shown(self, value: object) -> str:
        plain = self._plain(value)
        if isinstance(plain, list) and all(isinstance(part, str) for part in plain):
            plain = ",".join(plain)
        text = neutralise(plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False))
        return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' "=') else text


class JsonFormatter(_Formatter):
    """One JSON object per line: ts (UTC), level, event, logger, the fields, and exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "ts": f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z",
            "level": record.levelname.lower(),
            "event": neutralise(self._text(record.getMessage())),
            "logger": record.name,
        }
        for name, value in self._fields(record).items():
            line[f"{name}_" if name in _TOP else name] = self._plain(value)
        if found := self._traceback(record.exc_info):
            line["exception"] = neutralise(found, keep_lines=True)
        return json.dumps(line)


def _written_out(found: re.Match[str]) -> str:
    char = found.group()
    if char in _SHORT_NAMES:
        return _SHORT_NAMES[char]
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
