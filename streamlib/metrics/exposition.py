"""Renders a registry for a scraper, and adds the texts of several processes up to one with a `slot` label."""

from __future__ import annotations

import re
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_EOF = "# EOF"


class _WithoutCreated(Collector):
    """The registry's families without `_created` series: they double the counters and nobody reads them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


def render(registry: CollectorRegistry, accept: str = "") -> tuple[str, bytes]:
    """Content type and text of all metrics, in the format that the Accept header asks for.

    Plain text unless OpenMetrics is accepted (only that has exemplars).
    """
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is none
        encode, content_type = choose_encoder("")
    return content_type, encode(_WithoutCreated(registry))


def render_nothing(accept: str) -> tuple[str, bytes]:
    """The answer of a process that has no metrics yet."""
    return render(CollectorRegistry(), accept)


class _Family:
    """One metric of all slots: its HELP, TYPE and UNIT lines once, then samples."""

    def __init__(self) -> None:
        self.about: dict[str, str] = {}
        self.samples: list[str] = []


def merge(texts: Iterable[tuple[int, bytes]]) -> bytes:
    """One exposition out of several of the same format; every sample gets the label slot="<number>".

    Works on lines, not on values: what a process says about a sample (exemplars, timestamps) stays as it is.
    """
    families: dict[str, _Family] = {}
    ended = False
    for slot, text in texts:
        family = _Family()
        for line in text.decode().split("\n"):
            if line == _EOF:
                ended = True
            elif line.startswith("# "):
                kind, name = line.split(" ", 3)[1:3]
                family = families.setdefault(name, _Family())
                family.about.setdefault(kind, line)
            elif line:
                family.samples.append(_with_slot(line, slot))
    lines = [line for family in families.values() for line in (*family.about.values(), *family.samples)]
    if ended:
        lines.append(_EOF)
    return "".join(f"{line}\n" for line in lines).encode()


def _with_slot(line: str, slot: int) -> str:
    found = _NAME.match(line)
    end = found.end() if found else 0
    name, rest = line[:end], line[end:]
    if not rest.startswith("{"):
        return f'{name}{{slot="{slot}"}}{rest}'
    separator = "" if rest.startswith("{}") else ","
    return f'{name}{{slot="{slot}"{separator}{rest[1:]}'
