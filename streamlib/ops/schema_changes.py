"""What has changed between the schemas that were kept and those of the app, and whom a change breaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from msgspec import Struct

from streamlib.ops.schema import Document
from streamlib.ops.schema_gaps import Gap, gaps, kinds_of, shown

Breaks = Literal["", "stored events", "older workers", "both"]

# A field that is gone is told of once, by `_fields`, whomever it breaks.
TEXTS: dict[tuple[str, str], str] = {
    ("stored events", "type"): "no longer takes {what}",
    ("stored events", "values"): "no longer takes {what}",
    ("stored events", "bound"): "narrowed: {what}",
    ("stored events", "absent"): "required field added without a default",
    ("stored events", "may be absent"): "became required, and stored events may lack it",
    ("stored events", "closed"): "refuses unknown fields now",
    ("older workers", "type"): "takes {what} now, which older workers refuse",
    ("older workers", "values"): "takes {what} now, which older workers refuse",
    ("older workers", "bound"): "widened beyond what older workers take: {what}",
    ("older workers", "may be absent"): "may be left out now, and older workers require it",
    ("older workers", "unknown"): "field added, and older workers refuse unknown fields",
}


class Change(Struct, frozen=True, kw_only=True):
    """One change. `field` is its path inside the event, "" for the whole; `breaks` is "" for a compatible one.

    "stored events": what lies in the stream can no longer be read. "older workers": they cannot read what newer
    producers write, while both run.
    """

    topic: str
    type: str = ""
    version: int | None = None
    field: str = ""
    change: str
    breaks: Breaks = ""


def compare(old: Document, new: Document) -> list[Change]:
    """Every change from `old`, the schemas that were kept, to `new`, those of the app; breaking ones first."""
    found: list[Change] = []
    before, after = old["topics"], new["topics"]
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            found.append(Change(topic=name, change="topic gone: nobody reads its events any more", breaks="both"))
        elif name not in before:
            found.append(Change(topic=name, change="topic added"))
        else:
            found += _topic(name, before[name], after[name])
    return sorted(found, key=lambda one: not one.breaks)


def _topic(name: str, old: Document, new: Document) -> Iterator[Change]:
    if old.get("key") != new.get("key"):
        change = (
            f"key changed from {old.get('key')} to {new.get('key')}: events of one key would lie on two partitions; "
            "make a new topic of it with app.rekey"
        )
        yield Change(topic=name, change=change, breaks="both")
    if old["codec"] != new["codec"]:
        change = f"codec changed from {old['codec']} to {new['codec']}: publish to a new topic instead"
        yield Change(topic=name, change=change, breaks="both")
    before, after = old["types"], new["types"]
    for type_name in sorted(before.keys() | after.keys()):
        if type_name not in after:
            change = "type gone: stored events of it can no longer be read; keep its class on the topic"
            yield Change(topic=name, type=type_name, change=change, breaks="stored events")
        elif type_name not in before:
            yield Change(topic=name, type=type_name, change="type added")
        else:
            yield from _type(name, type_name, before[type_name], after[type_name])


def _type(topic: str, name: str, old: Document, new: Document) -> Iterator[Change]:
    before, after = old["versions"], new["versions"]
    known = before.keys() | old["raised"].keys()
    for version in sorted(known | after.keys() | new["raised"].keys(), key=int):
        place: dict[str, Any] = {"topic": topic, "type": name, "version": int(version)}
        if version in before and version in after:
            for field, change, breaks in differences(before[version], after[version]):
                yield Change(**place, field=field, change=change, breaks=breaks)
        elif version in known and version not in after and version not in new["raised"]:
            change = (
                f"version gone: stored events of it can no longer be read; declare @app.upcast({name}, "
                f"from_version={version}), or keep its class on the topic"
            )
            yield Change(**place, change=change, breaks="stored events")
        elif version in new["raised"] and version not in old["raised"]:
            yield Change(**place, change=f"raised to version {new['raised'][version]} now")
        elif version in after and version in known:
            yield Change(**place, change="has a class of its own now")
        elif version in after:
            yield Change(**place, change="version added: older workers leave it to newer ones")


def differences(old: Document, new: Document) -> Iterator[tuple[str, str, Breaks]]:
    """Field, change and whom it breaks, between two schemas of one type and version."""
    stored = list(gaps(new, old, older_writer=True))
    ahead = list(gaps(old, new, older_writer=False))
    changed = _changed_kinds(stored, ahead)
    for field in sorted(changed):
        yield field, f"type changed from {changed[field][0]} to {changed[field][1]}", "both"
    sides: tuple[tuple[Breaks, list[Gap]], ...] = (("stored events", stored), ("older workers", ahead))
    for breaks, found in sides:
        for gap in found:
            if gap.field in changed and gap.kind in ("type", "values"):
                continue
            if (text := TEXTS.get((breaks, gap.kind))) is not None:
                yield gap.field, text.format(what=gap.what), breaks
    yield from _noted(old, new)


def _changed_kinds(stored: list[Gap], ahead: list[Gap]) -> dict[str, tuple[str, str]]:
    """The fields whose type neither side reads of the other: what it was, and what it is."""
    back, forth = ({gap.field: gap for gap in found if gap.kind in ("type", "values")} for found in (stored, ahead))
    return {field: (back[field].writer, forth[field].writer) for field in back.keys() & forth.keys()}


def _noted(old: Document, new: Document) -> Iterator[tuple[str, str, Breaks]]:
    """Fields removed, and what changes without breaking anything."""
    pairs, seen = [("", old, old, new, new)], set[tuple[int, int]]()
    while pairs:
        at, before, old_root, after, new_root = pairs.pop()
        one, other = kinds_of(before, old_root), kinds_of(after, new_root)
        for kind in one.keys() & other.keys():
            was, now = one[kind], other[kind]
            if (id(was), id(now)) in seen:
                continue
            seen.add((id(was), id(now)))
            if kind.startswith("object") and "properties" in was and "properties" in now:
                yield from _fields(at, was, now)
                both = was["properties"].keys() & now["properties"].keys()
                inner = [(_under(at, name), was["properties"][name], now["properties"][name]) for name in both]
            else:
                inner = [
                    (f"{at}[]", was[part], now[part])
                    for part in ("items", "additionalProperties")
                    if isinstance(was.get(part), dict) and isinstance(now.get(part), dict)
                ]
            pairs += [(path, left, old_root, right, new_root) for path, left, right in inner]


def _fields(at: str, was: Document, now: Document) -> Iterator[tuple[str, str, Breaks]]:
    before, after = was["properties"], now["properties"]
    required, required_now = set(was.get("required", ())), set(now.get("required", ()))
    for name in sorted(before.keys() | after.keys()):
        field = _under(at, name)
        if name not in after:
            text = (
                "field removed: older workers require it"
                if name in required
                else "field removed: older workers miss it"
            )
            yield field, text, "both"
        elif name not in before:
            if name not in required_now:
                yield field, "optional field added", ""
        elif name in required and name not in required_now:
            yield field, "has a default now", ""
        elif name not in required_now and before[name].get("default") != after[name].get("default"):
            yield field, f"default changed from {shown(before[name])} to {shown(after[name])}", ""


def _under(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name
