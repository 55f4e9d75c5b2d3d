"""The schemas of an app as one document: topic -> type -> version -> JSON Schema, to be kept in a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import inspect

from streamlib.codec import Codec, PlainCodec
from streamlib.errors import SchemaFileError
from streamlib.event import Event, Registry, event_type, event_version
from streamlib.topic import TopicSpec

FORMAT = 1
Document = dict[str, Any]
"""`{"format", "topics": {name: {"key", "codec", "types": {type: {"raised": {version: version}, "versions": {version:
JSON Schema}}}}}}`; versions are texts, as JSON has it."""

TEXT_KEYS = "str"
"""Of a dict, as JSON has it; other keys are written as texts and read back."""
_TIMES = {inspect.DateTimeType: "date-time", inspect.TimeType: "time"}


def export(topics: Iterable[TopicSpec]) -> Document:
    """The schemas of these topics: what is stored in them, and what their classes read. Raises SchemaFileError."""
    return {"format": FORMAT, "topics": {topic.name: _topic(topic) for topic in topics}}


def text_of(document: Document) -> str:
    """The document as it is kept: one and the same text for the same schemas."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def parse(raw: bytes, where: str) -> Document:
    """A document that was kept in the file `where`. Raises SchemaFileError."""
    try:
        document = msgspec.json.decode(raw, type=_Kept)
    except (msgspec.DecodeError, RecursionError) as error:
        raise SchemaFileError(f"{where} holds no schemas: {error}; write it with `streamlib schema export`") from error
    if document.format != FORMAT:
        raise SchemaFileError(
            f"{where} has format {document.format}, this version reads {FORMAT}; write it anew with "
            "`streamlib schema export` from the app as it is deployed"
        )
    found: Document = msgspec.to_builtins(document)
    return found


class _KeptType(msgspec.Struct):
    versions: dict[str, dict[str, Any]]
    raised: dict[str, int] = {}


class _KeptTopic(msgspec.Struct):
    types: dict[str, _KeptType]
    codec: str
    key: str | None = None


class _Kept(msgspec.Struct):
    format: int
    topics: dict[str, _KeptTopic]


def _topic(topic: TopicSpec) -> Document:
    registry, types = topic.registry, dict[str, Any]()
    for cls in registry.classes:
        one = types.setdefault(event_type(cls), {"versions": {}, "raised": {}})
        one["versions"][str(event_version(cls))] = schema_of(cls)
        one["raised"] |= {str(version): event_version(cls) for version in _raised(registry, cls)}
    return {"key": topic.key, "codec": _codec(topic.codec), "types": types}


def _raised(registry: Registry, cls: type[Event]) -> list[int]:
    """The stored versions that become events of this class by upcasters."""
    name, version = event_type(cls), event_version(cls)
    candidates = registry.upcasters.raised_to(name, version)
    return [one for one in candidates if registry.find(name, one) is cls]


def _codec(codec: Codec) -> str:
    """What tells whether the same bytes mean the same: the codec's name and how it writes an empty event."""
    name = type(codec).__name__
    if not isinstance(codec, PlainCodec):
        return name
    return f"{name} {'json' if codec.encode_plain({}, name) == b'{}' else 'msgpack'}"


def schema_of(cls: type[Event]) -> Document:
    """The JSON Schema of a class, with what msgspec's leaves out: formats of times, keys of dicts, fields not always
    written."""
    try:
        schema = msgspec.json.schema(cls, schema_hook=_own)
    except (TypeError, RecursionError) as error:
        raise SchemaFileError(f"{event_type(cls)} version {event_version(cls)} has no JSON Schema: {error}") from error
    _Marks(schema.get("$defs", {})).on(inspect.type_info(cls), schema)
    found: Document = json.loads(msgspec.json.encode(schema))  # tuples are lists from here on, as in a file
    return found


def _own(cls: type) -> dict[str, Any]:
    return {"title": f"{cls.__module__}.{cls.__qualname__}"}


class _Marks:
    """Walks a type and its schema side by side."""

    def __init__(self, defs: dict[str, Any]) -> None:
        self._defs = defs
        self._seen: set[str] = set()

    def on(self, node: Any, schema: dict[str, Any]) -> None:
        if isinstance(node, inspect.Metadata):
            node = node.type
        if (name := schema.get("$ref", "").rpartition("/")[2]) and name in self._defs:
            if name in self._seen:
                return
            self._seen.add(name)
            schema = self._defs[name]
        if type(node) in _TIMES:
            schema.setdefault("format", _TIMES[type(node)])
        elif isinstance(node, inspect.UnionType):
            self._union(node, schema)
        elif isinstance(node, inspect.DictType):
            key = node.key_type.type if isinstance(node.key_type, inspect.Metadata) else node.key_type
            schema["x-keys"] = type(key).__name__.removesuffix("Type").lower()
            self._parts([(node.value_type, schema.get("additionalProperties"))])
        else:
            if may_omit := _may_omit(node):
                schema["x-may-omit"] = may_omit
            self._parts(_parts_of(node, schema))

    def _parts(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        for node, schema in pairs:
            if isinstance(schema, dict):
                self.on(node, schema)

    def _union(self, node: inspect.UnionType, schema: dict[str, Any]) -> None:
        """A union has at most one member of each kind in JSON, but for classes, which go by name."""
        branches = list(_flat(schema))
        for member in node.types:
            bare = member.type if isinstance(member, inspect.Metadata) else member
            for branch in branches:
                title = self._defs.get(branch.get("$ref", "").rpartition("/")[2], {}).get("title")
                if (
                    (title is not None and title == getattr(getattr(bare, "cls", None), "__name__", None))
                    or (type(bare) in _TIMES and branch.get("type") == "string")
                    or (branch.get("type") == "array" and any(_parts_of(bare, branch)))
                    or (branch.get("type") == "object" and isinstance(bare, inspect.DictType))
                ):
                    self.on(bare, branch)


def _may_omit(node: Any) -> list[str]:
    """The fields that are not always written: with `omit_defaults`, or as long as they are UNSET."""
    if not isinstance(node, inspect.StructType):
        return []
    omits, none = node.cls.__struct_config__.omit_defaults, msgspec.NODEFAULT
    return [
        field.encode_name
        for field in node.fields
        if not field.required and (omits or (field.default is none and field.default_factory is none))
    ]


def _flat(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for branch in schema.get("anyOf", ()):
        yield from (_flat(branch) if "anyOf" in branch else (branch,))


def _parts_of(node: Any, schema: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The members of a type, each with its schema."""
    if hasattr(node, "fields"):
        if "properties" in schema:
            return [(field.type, schema["properties"].get(field.encode_name)) for field in node.fields]
        members = schema.get("prefixItems", ())[-len(node.fields) :]  # behind a tag, if there is one
        return [(field.type, member) for field, member in zip(node.fields, members, strict=False)]
    if isinstance(node, inspect.TupleType):
        return list(zip(node.item_types, schema.get("prefixItems", ()), strict=False))
    return [(node.item_type, schema.get("items"))] if hasattr(node, "item_type") else []
