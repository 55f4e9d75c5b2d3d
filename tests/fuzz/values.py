"""Hostile JSON and msgpack: made by their grammars, with numbers, texts and nestings at and beyond every limit."""

from __future__ import annotations

import random
from collections.abc import Callable

DEEP = (3, 30, 63, 64, 65, 66, 200, 900, 990, 1_010, 5_000, 100_000)
WIDE = (10, 300, 3_000, 40_000, 80_000)

_NUMBERS = (
    b"0 -0 7 -1 1.5 1e308 -1e308 1e309 1e-400 1e999999999 1e99999999999999999999 NaN Infinity -Infinity 00 1. .5 +1"
    b" 1_000 9223372036854775807 9223372036854775808 -9223372036854775809 18446744073709551615 18446744073709551616"
).split()
_TEXTS = (
    b"", b" 3 ", b"a\nb", b"\xff\xfe", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\x1b[2J", b'"',
    "ünï".encode(), "٣".encode(), b"\xf0",
    *b"o-1 a\\u0000b \\ud800 \\udc00 \\ud83d\\ude00 \\ud800\\u0041 \\q \\u202e NaN sNaN -Infinity".split(),
    *b"1e999999999 1e-999999999 1E+400 1_000 9.99 2026-11-29T10:00:00Z 2026-11-29T10:00:00 PT1H null".split(),
    *b"9999-12-31T23:59:60Z 0000-00-00 2026-02-30 10:00 6ba7b810-9dad-11d1-80b4-00c04fd430c8 6ba7b810".split(),
    *b"AAAA A ==== true small".split(),
)  # fmt: skip
_WORDS = (b"null", b"true", b"false", b"nul", b"True", b"")
NAMES = (
    *b"order_id amount count celsius at day number size raw lines names anything children state status type".split(),
    *b"data id key version delay sku x __class__ \\u0000 \\ud800".split(), b"",
)  # fmt: skip


def json_value(rng: random.Random, depth: int = 4) -> bytes:
    """Some JSON, or what looks like it."""
    kind = rng.random()
    if kind < 0.3 or depth <= 0:
        return rng.choice((_number, _text, _word))(rng)
    if kind < 0.6:
        return json_object(rng, [rng.choice(NAMES) for _ in range(rng.randrange(5))], depth - 1)
    if kind < 0.99:
        return b"[" + b",".join(json_value(rng, depth - 1) for _ in range(rng.randrange(5))) + b"]"
    return rng.choice((_deep_json, _wide_json))(rng)


def json_object(rng: random.Random, names: list[bytes], depth: int = 4) -> bytes:
    """An object with these names, some of them twice."""
    return b"{" + b",".join(b'"%b":%b' % (name, json_value(rng, depth)) for name in names) + b"}"


def _number(rng: random.Random) -> bytes:
    if rng.random() < 0.95:
        return rng.choice(_NUMBERS)
    return rng.choice((b"", b"-")) + b"9" * rng.choice((19, 20, 400, 4_299, 4_300, 4_301, 20_000))


def _text(rng: random.Random) -> bytes:
    text = rng.choice(_TEXTS)
    if rng.random() < 0.02:
        text = (text or b"x") * rng.choice((50, 1_000, 30_000))
    return b'"' + text + b'"'


def _word(rng: random.Random) -> bytes:
    return rng.choice(_WORDS)


def _deep_json(rng: random.Random) -> bytes:
    depth, inner = rng.choice(DEEP), rng.choice((b"", b"1", b'"x"', b'"NaN"'))
    way = rng.randrange(3)
    if way == 0:
        return b"[" * depth + inner + b"]" * depth
    name = rng.choice((b"children", b"anything", b"x"))
    if way == 1:
        return (b'{"%b":' % name) * depth + (inner or b"0") + b"}" * depth
    return (b'{"%b":[' % name) * depth + inner + b"]}" * rng.choice((depth, depth - 1))


def _wide_json(rng: random.Random) -> bytes:
    count = rng.choice(WIDE)
    item = rng.choice((b"[]", b"{}", b"1", b"null", b'"1e9"', b'{"sku":"a"}', b"9" * 4_000))
    items = b"[" + b",".join([item] * min(count, 250_000 // (len(item) + 1))) + b"]"
    if rng.random() < 0.3:  # a long name above many: whoever carries the way to each of them carries it many times
        return b'{"%b":%b}' % (b"k" * rng.choice((100, 100_000)), items)
    return items


_SMALL: tuple[bytes, ...] = (
    b"\xc0", b"\xc2", b"\xc3", b"\x00", b"\x7f", b"\xe0", b"\xff", b"\xcc\xff", b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + b"\x00" * 7, b"\xcb\x7f\xf8" + b"\x00" * 6, b"\xcb\x7f\xf0" + b"\x00" * 6, b"\xca\x7f\xc0\x00\x00",
    b"\xd6\xff\x00\x00\x00\x01", b"\xd7\xff" + b"\xff" * 8, b"\xc7\x0c\xff" + b"\xff" * 12, b"\xd4\x05\x01",
    b"\xc7\x03\x2a\x01\x02\x03", b"\xc1", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff", b"\x81", b"\x91", b"\xa5ab",
)  # fmt: skip


def msgpack_value(rng: random.Random, depth: int = 4) -> bytes:
    """Some msgpack, or what looks like it."""
    kind = rng.random()
    if kind < 0.25 or depth <= 0:
        return rng.choice(_SMALL)
    if kind < 0.5:
        return msgpack_text(rng.choice(_TEXTS))
    if kind < 0.75:
        return msgpack_map(rng, [rng.choice(NAMES) for _ in range(rng.randrange(5))], depth - 1)
    if kind < 0.99:
        count = rng.randrange(5)
        return bytes([0x90 + count]) + b"".join(msgpack_value(rng, depth - 1) for _ in range(count))
    if rng.random() < 0.5:
        return rng.choice((b"\x91", b"\x81\xa1x", b"\x81\xa8anything\x91")) * rng.choice(DEEP) + b"\xc0"
    count, item = rng.choice((*WIDE, 250_000)), rng.choice((b"\x80", b"\x90", b"\x00", b"\xc0", b"\xa0"))
    return b"\xdd" + count.to_bytes(4, "big") + item * count


def msgpack_map(rng: random.Random, names: list[bytes], depth: int = 4) -> bytes:
    """A map with these names."""
    head = b"\xde" + len(names).to_bytes(2, "big")
    return head + b"".join(msgpack_text(name) + msgpack_value(rng, depth) for name in names)


def msgpack_text(text: bytes) -> bytes:
    return b"\xdb" + len(text).to_bytes(4, "big") + text


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The same bytes, with some of them flipped, cut, doubled, moved or overwritten."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if found:
            rng.choice(_MUTATIONS)(rng, found)
    return bytes(found)


def _flip(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _drop(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 9)]


def _double(rng: random.Random, data: bytearray) -> None:
    at, length = rng.randrange(len(data)), rng.randrange(1, 40)
    data[at:at] = bytes(data[at : at + length]) * rng.choice((1, 1, 3, 500))


def _splice(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    make: Callable[[random.Random], bytes] = rng.choice((json_value, msgpack_value, _text, _number))
    data[at : at + rng.randrange(9)] = make(rng)


def _overwrite(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    data[at : at + 4] = rng.randbytes(rng.randrange(1, 9))


_MUTATIONS = (_flip, _flip, _cut, _drop, _double, _splice, _overwrite)
