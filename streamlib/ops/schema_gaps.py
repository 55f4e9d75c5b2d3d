"""What a reader with one JSON Schema cannot read of what a writer with another one writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from msgspec import Struct

from streamlib.ops.schema import TEXT_KEYS

Schema = dict[str, Any]
Kind = Literal["type", "values", "bound", "absent", "may be absent", "closed", "unknown"]

# The reader's lower bounds must not be above the writer's, its upper ones not below, the others the same.
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_SAME = ("pattern", "multipleOf", "minProperties", "maxProperties")


class Gap(Struct, frozen=True):
    """One thing that cannot be read: where, of which kind, what it is, and the writer's whole type there."""

    field: str
    kind: Kind
    what: str = ""
    writer: str = ""


def gaps(reader: Schema, writer: Schema, *, older_writer: bool) -> Iterator[Gap]:
    """What the class of `reader` cannot read of what was written as `writer`.

    An older writer is a stream full of events: of other programs too, so they may lack what the schema does not
    require, and have more than it knows. A newer one is the class as streamlib encodes it.
    """
    return _Gaps(reader, writer, older_writer).at("", reader, writer)


def kinds_of(schema: Schema, root: Schema) -> dict[str, Schema]:
    """A schema as the kinds of values that it takes, each with its own; values of enums are together in "values"."""
    found: dict[str, Schema] = {}
    for branch, tag in _branches(schema, root, ""):
        if "enum" in branch or "const" in branch:
            values = branch.get("enum", [branch.get("const")])
            found.setdefault("values", {"enum": []})["enum"] += [one for one in values if one is not None]
            if None in values:
                found["null"] = {"type": "null"}
        else:
            kind = branch.get("type", "any")
            found[f"{kind} {_tag_of(branch, tag)}" if tag and kind == "object" else kind] = branch
    return found


def shown(schema: Schema) -> str:
    """The default of a field, for people."""
    return json.dumps(schema["default"], ensure_ascii=False) if "default" in schema else "none"


class _Gaps:
    def __init__(self, reader: Schema, writer: Schema, older_writer: bool) -> None:
        self._roots = reader, writer
        self._older = older_writer
        self._seen: set[tuple[int, int]] = set()

    def at(self, field: str, reader: Schema, writer: Schema) -> Iterator[Gap]:
        reads, writes = kinds_of(reader, self._roots[0]), kinds_of(writer, self._roots[1])
        if "any" in reads:
            return
        whole = " or ".join(_described(kind, one) for kind, one in sorted(writes.items()))
        for kind, one in writes.items():
            if kind == "values":
                refused = [value for value in one["enum"] if not _takes(reads, value)]
                if refused:
                    yield Gap(
                        field, "values", ", ".join(json.dumps(value, ensure_ascii=False) for value in refused), whole
                    )
            elif (other := _reader_of(kind, one, reads)) is None:
                yield Gap(field, "type", _described(kind, one), whole)
            elif (id(other), id(one)) not in self._seen:
                self._seen.add((id(other), id(one)))
                yield from self._inside(field, other, one)

    def _inside(self, field: str, reader: Schema, writer: Schema) -> Iterator[Gap]:
        yield from self._bounds(field, reader, writer)
        if "properties" in reader and "properties" in writer:
            yield from self._fields(field, reader, writer)
        if isinstance(reader.get("additionalProperties"), dict):
            yield from self.at(f"{field}[]", reader["additionalProperties"], writer.get("additionalProperties", {}))
        if reader.get("type") == "array":
            yield from self._items(field, reader, writer)

    def _fields(self, field: str, reader: Schema, writer: Schema) -> Iterator[Gap]:
        reads, writes = reader["properties"], writer["properties"]
        always = set(writer.get("required", ())) if self._older else writes.keys() - set(writer.get("x-may-omit", ()))
        for name in reader.get("required", ()):
            if name not in writes:
                yield Gap(_under(field, name), "absent")
            elif name not in always:
                yield Gap(_under(field, name), "may be absent")
        if reader.get("additionalProperties") is False:
            for name in writes.keys() - reads.keys():
                yield Gap(_under(field, name), "unknown")
            if self._older and writer.get("additionalProperties") is not False:
                yield Gap(field, "closed")
        for name in sorted(reads.keys() & writes.keys()):
            yield from self.at(_under(field, name), reads[name], writes[name])

    def _bounds(self, field: str, reader: Schema, writer: Schema) -> Iterator[Gap]:
        for name in sorted(reader.keys() & {*_LOWER, *_UPPER, *_SAME}):
            wanted, given = reader[name], writer.get(name)
            if given == wanted or (given is not None and name in _LOWER and wanted <= given):
                continue
            if given is not None and name in _UPPER and wanted >= given:
                continue
            yield Gap(field, "bound", self._now_and_then(name, wanted, given))

    def _now_and_then(self, name: str, wanted: Any, given: Any) -> str:
        now, then = (wanted, given) if self._older else (given, wanted)
        return f"{name} {'none' if now is None else now}, was {'none' if then is None else then}"

    def _items(self, field: str, reader: Schema, writer: Schema) -> Iterator[Gap]:
        reads, writes = reader.get("prefixItems", []), writer.get("prefixItems", [])
        for n, (one, other) in enumerate(zip(reads, writes, strict=False)):  # how many there are is a bound
            yield from self.at(f"{field}[{n}]", one, other)
        if isinstance(reader.get("items"), dict):
            yield from self.at(f"{field}[]", reader["items"], writer.get("items", {}) or reader["items"])


def _reader_of(kind: str, writer: Schema, reads: dict[str, Schema]) -> Schema | None:
    """What of the reader takes the writer's values of this kind."""
    reader = reads.get(kind)
    if kind in ("integer", "number") and reader is None:
        reader = reads.get("number") if kind == "integer" else None
        if reader is None and reads.get("string", {}).get("format") == "decimal":
            return {}  # decoders of Decimal take numbers, too
        return reader
    if reader is None:
        return None
    if kind == "string":
        same = all(reader.get(name) in (None, writer.get(name)) for name in ("format", "contentEncoding"))
        return reader if same else None
    if kind == "array":
        unique = bool(reader.get("uniqueItems")) and not writer.get("uniqueItems")
        return None if unique or ("prefixItems" in reader) != ("prefixItems" in writer) else reader
    if kind.startswith("object"):
        same = ("properties" in reader) == ("properties" in writer) and reader.get("x-keys") == writer.get("x-keys")
        return reader if same else None
    return reader


def _takes(reads: dict[str, Schema], value: Any) -> bool:
    if value in reads.get("values", {}).get("enum", ()):
        return True
    plain = {name: one for name, one in reads.items() if not one.keys() - {"type", "title", "description", "default"}}
    return ("string" if isinstance(value, str) else "integer") in plain or (
        isinstance(value, int) and "number" in plain
    )


def _branches(schema: Schema, root: Schema, tag: str) -> Iterator[tuple[Schema, str]]:
    """The members of a schema without references and unions, each with the field that tells objects apart."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" not in schema:
        yield schema, tag
        return
    inner = schema.get("discriminator", {}).get("propertyName", tag)
    for branch in schema["anyOf"]:
        yield from _branches(branch, root, inner)


def _tag_of(branch: Schema, field: str) -> str:
    return ", ".join(map(str, branch.get("properties", {}).get(field, {}).get("enum", ())))


def _described(kind: str, schema: Schema) -> str:
    if kind == "values":
        return ", ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    more = schema.get("format") or schema.get("contentEncoding") or ("unique" if schema.get("uniqueItems") else "")
    name = ("tuple" if "prefixItems" in schema else "list") if kind == "array" else kind
    if kind == "object" and "properties" not in schema:
        name, more = "dict", "" if schema.get("x-keys", TEXT_KEYS) == TEXT_KEYS else f"{schema['x-keys']} keys"
    return f"{name} ({more})" if more else name


def _under(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name
