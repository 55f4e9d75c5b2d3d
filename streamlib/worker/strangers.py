"""Events of types that no handler here takes: skipped, unless another live worker of the group handles them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streamlib.errors import UnknownType
from streamlib.event import stored_name
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
        """The types and versions that only other live workers of the group handle, as last asked."""
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
        message, spec = received.message, self._parts.spec
        if message is None or stored_name(message.type, message.version) in self.elsewhere:
            return False
        registry = spec.topic.registry
        if not isinstance(self._decoding.class_of(received), UnknownType):
            return True
        if spec.handles_type(message.type) and registry.is_newer(message.type, message.version):
            return False  # it waits for a newer worker, whatever the rule for types that nobody knows
        of_no_concern = message.type in registry.type_names and not spec.handles_type(message.type)
        return of_no_concern or spec.topic.unknown == "skip"
