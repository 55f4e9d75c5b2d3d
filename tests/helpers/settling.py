"""What tests settle: a failure, and every kind of outcome."""

from streamlib.redisio.dead_letter import Failure
from streamlib.redisio.delivery import Delivery
from streamlib.redisio.settler import Settlement, ack, bury, done, give_back, retry
from tests.helpers.delivering import GROUP

FAILURE = Failure("max_attempts", "ValueError: broken", "Traceback ...", "ValueError")
EMITTED = [b"id", b"e-out", b"type", b"Sent", b"v", b"1", b"key", b"", b"data", b"{}"]
KINDS = ("ack", "done", "retry", "back", "return", "dead")


def outcome(kind: str, delivery: Delivery) -> Settlement:
    """A settlement of this kind, with something in it to be written."""
    if kind == "ack":
        return ack(delivery)
    if kind == "done":
        return done(delivery, [EMITTED])
    if kind == "retry":
        return retry(delivery, delay_ms=60_000, attempts=1)
    if kind == "dead":
        return dead(delivery)
    return give_back(delivery, claimed=kind == "back")


def dead(delivery: Delivery) -> Settlement:
    return bury(delivery, FAILURE, attempts=3, group=GROUP, consumer="w1", now_ms=1_700_000_000_000)
