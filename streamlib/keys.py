"""Every key name in Redis, one function each: nothing else in the project pastes a key together."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from typing import Self

from msgspec import Struct

from streamlib.errors import DeclarationError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ENDS_LIKE_PARTITION = re.compile(r"\.\d+$")
MAX_ID_BYTES = 200
OWN_NAMESPACE = "streamlib"
SCRATCH = "streamlib-bench-"
"""Part of every key that is made to be removed again, and of no other."""
_SCRATCH_NAMESPACE = re.compile(rf"{SCRATCH}[0-9a-f]{{12}}")


def check_name(kind: str, name: str) -> str:
    """Return `name` if a topic, group or view may be called so, else raise DeclarationError."""
    if not _NAME.fullmatch(name):
        raise DeclarationError(f"{kind} {name!r}: a name is 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    if _ENDS_LIKE_PARTITION.search(name):
        raise DeclarationError(f"{kind} {name!r}: a name must not end in .<digits>, partitions are called so")
    return name


def check_namespace(namespace: str) -> str:
    """Return `namespace` ("" for none) if it may stand before topic names, else raise DeclarationError."""
    if namespace:
        check_name("namespace", namespace)
    if namespace == OWN_NAMESPACE:
        raise DeclarationError("namespace 'streamlib' is kept for the registry; choose another redis.namespace")
    return namespace


class StreamKeys(Struct, frozen=True):
    """The keys that belong to one partition stream; all of them lie in its cluster slot."""

    stream: str

    @property
    def _tag(self) -> str:
        return "{" + self.stream + "}"

    def all(self) -> str:
        """A pattern for everything beside the stream."""
        return f"{self._tag}:*"

    def idem(self, group: str, event_id: str) -> str:
        return f"{self._tag}:idem:{group}:{event_id}"

    def idems(self, group: str, event_ids: Iterable[str]) -> list[str]:
        """The same for many, in their order."""
        before = self.idem(group, "")
        return [before + event_id for event_id in event_ids]

    def marks(self, group: str) -> str:
        """Of the compact store: the plan of its sets."""
        return f"{self._tag}:done:{group}"

    def mark_set(self, group: str, segment: int | str, shard: int | str) -> str:
        """A set of digests; "*" for any."""
        return f"{self._tag}:done:{group}:{segment}:{shard}"

    def retry(self, group: str) -> str:
        return f"{self._tag}:retry:{group}"

    def retry_body(self, group: str) -> str:
        return f"{self._tag}:retrybody:{group}"

    def again(self, group: str) -> str:
        return f"{self._tag}:again:{group}"

    def dead(self, group: str) -> str:
        return f"{self._tag}:dead:{group}"

    def suspect(self, group: str) -> str:
        return f"{self._tag}:suspect:{group}"

    def replay(self, group: str) -> str:
        return f"{self._tag}:replay:{group}"

    def producers(self) -> str:
        return f"{self._tag}:producers"

    def dedup(self, event_id: str) -> str:
        return f"{self._tag}:dedup:{event_id}"

    def later(self) -> str:
        return f"{self._tag}:later"

    def later_body(self) -> str:
        return f"{self._tag}:laterbody"

    def owner(self, group: str) -> str:
        return f"{self._tag}:owner:{group}"

    def key_states(self, group: str) -> str:
        return f"{self._tag}:keys:{group}"

    def view(self, name: str, generation: int | str) -> str:
        """What is known of a generation; "*" for everything of any."""
        return f"{self._tag}:view:{name}:{generation}"

    def row(self, name: str, generation: int, row_id: str) -> str:
        return f"{self._tag}:view:{name}:{generation}:row:{row_id}"

    def all_rows(self, name: str, generation: int) -> str:
        return f"{self._tag}:view:{name}:{generation}:rows"

    def exact(self, name: str, generation: int, field: str, value: str) -> str:
        return f"{self._tag}:view:{name}:{generation}:by:{field}:{value}"

    def sorted_by(self, name: str, generation: int, field: str) -> str:
        return f"{self._tag}:view:{name}:{generation}:by:{field}"

    def aggregate(self, aggregate_id: str) -> str:
        return f"{self._tag}:agg:{aggregate_id}"

    def snapshot(self, aggregate_id: str) -> str:
        return f"{self._tag}:snap:{aggregate_id}"

    def answer(self, idempotency_key: str) -> str:
        return f"{self._tag}:cmd:{idempotency_key}"


class Keys(Struct, frozen=True):
    """All keys of one namespace ("" for none)."""

    namespace: str = ""

    def __post_init__(self) -> None:
        check_namespace(self.namespace)

    @classmethod
    def scratch(cls) -> Self:
        """Those of a new namespace that nobody has, to be removed again."""
        return cls(SCRATCH + uuid.uuid4().hex[:12])

    @property
    def are_scratch(self) -> bool:
        """Whether `scratch` made this namespace."""
        return _SCRATCH_NAMESPACE.fullmatch(self.namespace) is not None

    def stream(self, topic: str, partition: int, partitions: int) -> StreamKeys:
        """The keys of one partition. With one partition the stream is called like the topic."""
        name = topic if partitions == 1 else f"{topic}.{partition}"
        return StreamKeys(f"{self.namespace}:{name}" if self.namespace else name)

    def _registry(self, name: str) -> str:
        return f"{OWN_NAMESPACE}:{self.namespace}:{name}" if self.namespace else f"{OWN_NAMESPACE}:{name}"

    def topics(self) -> str:
        return self._registry("topics")

    def views(self) -> str:
        return self._registry("views")

    def group(self, topic: str, group: str) -> str:
        return self._registry(f"group:{topic}:{group}")

    def limit(self, topic: str, group: str) -> str:
        return self._registry(f"limit:{topic}:{group}")

    def replay(self, topic: str, group: str) -> str:
        return self._registry(f"replay:{topic}:{group}")

    def workers(self) -> str:
        return self._registry("workers")
