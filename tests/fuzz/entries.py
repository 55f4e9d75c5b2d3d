"""Stream entries as Redis would hand them out: good ones, and what bugs and attackers make of them."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from streamlib.codec import Fields
from tests.fuzz.values import NAMES, json_object, json_value, msgpack_map, msgpack_value, mutated

_GOOD: dict[str, dict[str, Any]] = {
    "Paid": {
        "order_id": "o-1",
        "amount": "9.99",
        "count": 3,
        "celsius": 21.5,
        "at": "2026-11-29T10:00:00Z",
        "day": "2026-11-29",
        "number": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "size": "small",
        "raw": "AAAA",
        "lines": [{"sku": "a", "price": "1.10"}, {"sku": "b"}],
        "names": {"a": 1},
        "anything": {"x": [1, None, "y"]},
    },
    "Plain": {"order_id": "o-1", "count": 3},
    "Tree": {"order_id": "o-1", "children": [{"order_id": "o-2", "children": []}]},
    "Touchy": {"order_id": "o-1"},
    "Moved": {"order_id": "o-1", "state": "new", "status": "new"},
}
_TYPES = [*_GOOD]
_VERSIONS = (
    b"1", b"1", b"1", b"2", b"3", b"0", b"4", b"99", b"100", b"01", b"-1", b"", b"1.0", b"1e3", b"9" * 16, b"9" * 17,
    b"9" * 5_000, "٣".encode(), b"\xff", b" 1", b"1\n",
)  # fmt: skip
_IDS = (
    b"e-1", b"", b"x" * 200, b"x" * 201, "é".encode() * 100, "é".encode() * 101, b"a\x00b", b"\xff", b"\xed\xa0\x80",
    b"a:b{c}*?", b"a\nb", b"\x1b[2J", b"x" * 100_000,
)  # fmt: skip
_TIMES = (b"5", b"1764410400000", b"9" * 15, b"9" * 16, b"9" * 17, b"-5", b"", b"1.5", "٣".encode(), b"\xff")
ENTRY_IDS = ("1764410400000-0", "5-1", "0-1", "18446744073709551615-18446744073709551615")


def data(rng: random.Random, type_name: str, *, packed: bool) -> bytes:
    """The data of an event of this type: good, nearly good, or anything."""
    encode = msgspec.msgpack.encode if packed else msgspec.json.encode
    good, way = _GOOD[type_name], rng.random()
    if way < 0.15:
        return encode(good)
    if way < 0.45:
        return mutated(rng, encode(good))
    if way < 0.8:
        return _one_field_changed(rng, good, packed=packed)
    if way < 0.9:
        names = [*(name.encode() for name in good), *rng.sample(NAMES, rng.randrange(3))]
        return msgpack_map(rng, names) if packed else json_object(rng, names)
    if way < 0.97:
        return msgpack_value(rng) if packed == (rng.random() < 0.9) else json_value(rng)
    return rng.randbytes(rng.choice((0, 1, 10, 200, 5_000)))


def _one_field_changed(rng: random.Random, good: dict[str, Any], *, packed: bool) -> bytes:
    """What is wrong stands alone: everything else can be read."""
    changed = rng.choice([*good, "unheard"])
    if packed:
        made = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in good.items()}
        made[changed] = msgspec.Raw(msgpack_value(rng))
        return msgspec.msgpack.encode(made)
    parts = [
        b'"%b":%b' % (name.encode(), msgspec.json.encode(value)) for name, value in good.items() if name != changed
    ]
    parts.insert(rng.randrange(len(parts) + 1), b'"%b":%b' % (changed.encode(), json_value(rng)))
    if rng.random() < 0.1:
        parts.append(rng.choice(parts))
    return b"{" + b",".join(parts) + b"}"


def native(rng: random.Random, *, packed: bool) -> Fields:
    """An entry of streamlib's own layout."""
    type_name = rng.choice(_TYPES)
    version = b"1" if type_name != "Moved" else b"%d" % rng.randrange(1, 5)
    fields = [
        b"id", b"e-%d" % rng.randrange(10**6), b"type", type_name.encode(), b"v", version, b"key", b"o-1",
        b"data", data(rng, type_name, packed=packed),
    ]  # fmt: skip
    if rng.random() < 0.3:
        fields += _optional(rng)
    if rng.random() < 0.35:
        _hurt(rng, fields)
    return fields


def _optional(rng: random.Random) -> Fields:
    every = [
        (b"ts", rng.choice(_TIMES)), (b"corr", rng.choice(_IDS)), (b"cause", rng.choice(_IDS)),
        (b"traceparent", rng.choice((b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", *_IDS))),
        (b"h", _headers(rng)),
    ]  # fmt: skip
    return [part for pair in rng.sample(every, rng.randrange(1, 6)) for part in pair]


def _headers(rng: random.Random) -> bytes:
    way = rng.random()
    if way < 0.3:
        count = rng.choice((0, 1, 31, 32, 33, 1_000))
        return msgspec.json.encode({f"h{n}": "v" * rng.choice((1, 1, 300)) for n in range(count)})
    if way < 0.6:
        return json_value(rng)
    return json_object(rng, [rng.choice(NAMES) for _ in range(4)], 1)


def _hurt(rng: random.Random, fields: Fields) -> None:
    """Change the envelope."""
    for _ in range(rng.choice((1, 1, 2))):
        way, at = rng.randrange(9), rng.randrange(max(len(fields) // 2, 1)) * 2
        if way == 0:
            del fields[at : at + 2]
        elif way == 1:
            fields += fields[at : at + 2]
        elif way == 2:
            del fields[at : at + 1]
        elif way == 3:
            fields += (rng.choice((b"surprise", b"", b"dl-reason", b"\xff", b"x" * 5_000)), rng.choice(_IDS))
        elif way == 4 and fields:
            some = rng.randrange(len(fields))
            fields[some] = mutated(rng, fields[some])
        elif way == 5 and fields:
            fields[rng.randrange(len(fields))] = rng.choice(_IDS)
        elif way == 6 and len(fields) > 5:
            fields[5] = rng.choice(_VERSIONS)
        elif way == 7 and len(fields) > 3:
            fields[rng.choice((1, 3))] = rng.choice(_IDS)
        elif way == 8 and rng.random() < 0.1:
            fields += [part for n in range(rng.choice((50, 5_000))) for part in (b"f%d" % n, b"v")]


def flat(rng: random.Random) -> Fields:
    """An entry of another program, whose fields are the event's."""
    fields: Fields = []
    for name in rng.sample(
        ["order_id", "amount", "count", "celsius", "at", "size", "kind", "raw"], rng.randrange(1, 9)
    ):
        value = str(_GOOD["Paid"].get(name, "Plain")).encode()
        fields += (name.encode(), rng.choice((value, value, mutated(rng, value), json_value(rng, 1), rng.choice(_IDS))))
    if rng.random() < 0.3:
        _hurt(rng, fields)
    return fields


def raw(rng: random.Random, *, packed: bool) -> Fields:
    """An entry of another program that holds the whole event in one field."""
    fields = [b"data", data(rng, "Paid", packed=packed), b"origin", rng.choice(_IDS)]
    if rng.random() < 0.3:
        _hurt(rng, fields)
    return fields
