"""How append.lua takes events: what those in a row have in common is sent once, for each argument costs both sides."""

from __future__ import annotations

from collections.abc import Iterable

from streamlib.codec import Fields
from streamlib.redisio.later import pack
from streamlib.redisio.scripts import Arg


def args_of(entries: Iterable[Fields]) -> tuple[list[Arg], int]:
    """What stands in the ARGV of append.lua for these entries, each its fields, and how many bytes they have together.

    The events of a save mostly differ in their ids and their data alone, and those are the first value and the last
    part of an entry. So entries in a row that are equal in all other parts are a run, and those behind the first bring
    two arguments each; with one field the first value is the last part.
    """
    args: list[Arg] = []
    name, between, head, events, common, size = b"", None, 0, 0, 0, 0
    for fields in entries:
        if fields[2:-1] != between or fields[0] != name:
            name, between = fields[0], fields[2:-1]
            head, events, common = len(args), 1, len(name) + sum(map(len, between))
            args += (1, len(fields), *fields, pack(fields[:-1]) + b"%d:" % len(fields[-1]))
        else:
            events += 1
            args[head] = events
            args += (fields[1], fields[-1]) if between else fields[1:]
        size += common + len(fields[-1]) + (len(fields[1]) if between else 0)
    return args, size
