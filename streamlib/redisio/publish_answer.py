"""What publish.lua answers, as an outcome for each event."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from streamlib.errors import IdempotencyConflict, NotConfirmed, PublishError, StreamlibError, TopicFull
from streamlib.message import Position
from streamlib.redisio.publish_batch import Outcome, Sent, Waiting
from streamlib.topic import TopicSpec

_NAMES: dict[type[StreamlibError], str] = {
    TopicFull: "full",
    IdempotencyConflict: "conflict",
    NotConfirmed: "not_confirmed",
}


class Answers(Struct, frozen=True):
    """Reads the answers for one partition, the stream `stream`."""

    topic: TopicSpec
    partition: int
    stream: str
    topic_len: int

    def outcomes(self, batch: Sequence[Waiting], answer: str, missing: str) -> list[Outcome]:
        """The outcome of each event of the batch; `missing` tells what the durability asked for lacks, if anything."""
        words = answer.split(" ")
        if missing or not answer.replace("-", "").replace(" ", "").isdigit():
            return [self._outcome(*found, missing) for found in zip(batch, words, strict=True)]
        # Entry ids and nothing else, as nearly always.
        name, partition = self.topic.name, self.partition
        return [Sent(Position(name, partition, word), False) for word in words]

    def _outcome(self, waiting: Waiting, word: str, missing: str) -> Outcome:
        stream = self.stream
        if word == "F":
            return TopicFull(
                f"{waiting} was not stored: {stream} holds limits.topic_len = {self.topic_len} entries, delayed "
                "ones included; let "
                "its groups catch up and retention trim it, or raise limits.topic_len"
            )
        if word[0] == "#":
            return IdempotencyConflict(
                f"{waiting}: {stream} has {_place(word[1:])} with this event id and another content; nothing was stored"
            )
        if word[0] == "!":
            return PublishError(f"{waiting}: {stream} refused it: {word[1:].replace('_', ' ')}")
        duplicate = word[0] == "="
        entry_id = word[1:] if duplicate else word
        if entry_id[0] == "@":  # it waits; what its entry is going to be called nobody knows yet
            entry_id = ""
        if missing:
            return NotConfirmed(
                f"{waiting} is stored as {stream} {entry_id or '(delayed)'} on the primary, but durability="
                f"{self.topic.durability!r} was not reached: {missing}; publishing it again under its id is "
                "safe"
            )
        return Sent(Position(self.topic.name, self.partition, entry_id), duplicate)


def name_of_outcome(outcome: Outcome) -> str:
    """The word for it in metrics."""
    if isinstance(outcome, Sent):
        return "duplicate" if outcome.duplicate else "stored"
    return _NAMES.get(type(outcome), "error")


def _place(word: str) -> str:
    return "a delayed event" if word[0] == "@" else word
