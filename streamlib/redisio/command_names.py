"""Names a command for people: a script by its file, so that metrics can tell a settle from a claim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_RUN = frozenset({"evalsha", "eval", "evalsha_ro", "eval_ro"})
_scripts: dict[str | bytes, str] = {}


def know_script(name: str, sha: str, body: bytes) -> None:
    """From now on every run of this script is called by its name."""
    _scripts[sha] = _scripts[body] = name


def name_of(command: Sequence[Any]) -> str:
    """The script's name or the command's own, in lower case."""
    name = str(command[0]).lower()
    return _scripts.get(command[1], name) if name in _RUN else name
