"""Snapshots: an aggregate's state as of a version, a cache that saves a load from folding all events."""

from __future__ import annotations

import logging
from typing import Any, get_type_hints

import msgspec

from streamlib.errors import DeclarationError
from streamlib.eventsourcing.aggregate import Aggregate, label_of
from streamlib.redisio.aggregate_reader import Page

log = logging.getLogger(__name__)


class Snapshots:
    """Between aggregates of one class and their snapshots.

    A snapshot is "<class>@<class version> <version> <entry id> <commit id> <state>": it stands for the event that lies
    at its version, so one that outlived a rollback of Redis is not used.
    """

    def __init__(self, cls: type[Aggregate]) -> None:
        """Raises DeclarationError for a field that cannot be stored."""
        self._names = tuple(cls._fields)
        self.stamp = f"{cls.__name__}@{cls._class_version}"
        try:
            hints = get_type_hints(cls)
            fields = [(name, hints[name]) for name in self._names]
            state: Any = msgspec.defstruct(f"{cls.__name__}State", fields, forbid_unknown_fields=True)
            msgspec.json.schema(state)  # unlike a Decoder it takes no type that would need code to be read
            self._decoder = msgspec.msgpack.Decoder(state)
        except (NameError, TypeError) as error:
            raise DeclarationError(
                f"{cls.__name__} cannot be kept in snapshots: {error}; annotate its fields with types that events can "
                "have, or leave snapshot_every out"
            ) from error
        self._state = state
        self._told = False

    def encode(self, aggregate: Aggregate, commit_id: str) -> bytes | None:
        """The aggregate as of its last stored event; None, and a warning, when its state would not come back equal."""
        state = self._state(*(getattr(aggregate, name) for name in self._names))
        try:
            raw = msgspec.msgpack.encode(state)
            back = self._decoder.decode(raw)
            changed = [name for name in self._names if not _same(getattr(back, name), getattr(state, name))]
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            changed = [str(error)]
        if changed:
            # Every further save tries again: one line for the class is enough.
            log.log(
                logging.DEBUG if self._told else logging.WARNING,
                "%s gets no snapshot, for its state would not come back as it is: %s; annotate each field with the "
                "type of its values",
                label_of(aggregate),
                ", ".join(changed),
            )
            self._told = True
            return None
        return f"{self.stamp} {aggregate.version} {aggregate._kept.entry_id} {commit_id} ".encode() + raw

    def restore(self, aggregate: Aggregate, page: Page) -> bool:
        """Put the page's snapshot into a new aggregate; False where there is none, or none that can be read."""
        if page.snapshot is None:
            return False
        _, _, entry_id, _, raw = page.snapshot.split(b" ", 4)
        try:
            state = self._decoder.decode(raw)
        except (ValueError, RecursionError) as error:
            log.warning("the snapshot of %s cannot be read and is not used: %s", label_of(aggregate), error)
            return False
        values = aggregate.__dict__
        for name in self._names:
            values[name] = getattr(state, name)
        values["version"] = aggregate._kept.snapshot_version = page.after
        aggregate._kept.entry_id = entry_id.decode()
        return True


def _same(back: Any, value: Any) -> bool:
    return type(back) is type(value) and bool(back == value)
