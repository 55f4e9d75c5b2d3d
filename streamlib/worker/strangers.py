"""Events of types that no handler here takes: skipped, unless another live worker of the group handles them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streamlib.errors import UnknownType
from streamlib.redisio.reader import Received
from streamlib.worker.decoding import Decoding
from streamlib.worker.parts import Parts


class Strangers:
    """Asks, for all that wait at once, which types the group's live workers handle."""

    def __init__(
        self,
        parts: Parts,
        decoding: Decoding,
        *,
        skip: Callable[[Received], None],
        keep: Callable[[Sequence[Received]], None],
    ) -> None:
        self.waiting: list[Received] = []
        self.elsewhere: frozenset[str] = frozenset()
        """The types that only other live workers of the group handle, as last asked."""
        self._parts = parts
        self._decoding = decoding
        self._skip = skip
        self._keep = keep

    async def admit(self) -> None:
        """Skip or keep what waits, until nothing waits any more."""
        while self.waiting:
            received = list(self.waiting)
            # Asked after these entries were read: whoever handles a type has said so before anybody published it.
            self.elsewhere = await self._parts.live_types() - self._parts.spec.type_names
            del self.waiting[: len(received)]
            kept = [one for one in received if not self._may_skip(one)]
            for one in received:
                if one not in kept:
                    self._skip(one)
            self._keep(kept)

    def _may_skip(self, received: Received) -> bool:
        """A type that this group does not handle, neither here nor in a newer or older worker that is live."""
        if received.message is None or received.message.type in self.elsewhere:
            return False
        skips = self._parts.spec.topic.unknown == "skip"
        return skips or not isinstance(self._decoding.class_of(received), UnknownType)
