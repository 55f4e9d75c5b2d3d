"""What is noted about a key is read back as it was meant, and what nobody of us wrote is nobody's state."""

import pytest

from streamlib.redisio.key_states import KeyState, parse

RUBBISH = [
    b"", b" ", b"x", b"1-1", b"1-1 1 1", b"1-1 1 1 1", b"1-1 x 1 0 e", b"1-1 1 soon 0 e", b"1-1 1 1 x e",
    b"1-1 -1 1 0 e", b"1-1 1 -1 0 e", b"\xff\xfe 1 1 0 e", b"b1-1 1 1 0 e", b"1_1 1 1 0 e", b"a 1 1 0 e",
    b"1-1 " + b"9" * 5_000 + b" 1 0 e", b"1-1 1 " + b"9" * 5_000 + b" 0 e", b"1-1 1 1 " + b"9" * 5_000 + b" e",
    b"1-1 1 halted 0 nothing told", b"1-1 \xd9\xa3 1 0 e", b"1-1\n1 1 0 e",
]  # fmt: skip


@pytest.mark.parametrize("noted", RUBBISH, ids=lambda noted: repr(noted[:20]))
def test_what_somebody_else_wrote_is_no_state(noted: bytes) -> None:
    assert parse("k", noted) is None


def test_a_held_event() -> None:
    noted = b"1700000000000-3 2 1700000005000 0 ValueError: broken at once"
    assert parse("k", noted) == KeyState(
        "k", "1700000000000-3", 2, 1_700_000_005_000, False, "ValueError: broken at once", 0, noted
    )


def test_a_halted_one_tells_its_event_and_is_never_due() -> None:
    noted = b"\0".join([b"a5-0 8 halted 17 two\nlines", b"e 1", *[b"value"] * 9])
    state = parse("k", noted)
    assert state is not None
    assert (state.ref, state.entry_id, state.event_id) == ("a5-0", "5-0", "e 1")
    assert (state.halted, state.due_ms, state.attempts, state.parked_ms) == (True, 0, 8, 17)
    assert state.error == "two\nlines"


@pytest.mark.parametrize("text", [b"", b" ", b"  two  ", b"1 2 3 4 5", b"halted", "ü€😀".encode()])
def test_whatever_the_text_it_is_kept_whole(text: bytes) -> None:
    state = parse("k", b"1-1 1 1 0 " + text)
    assert state is not None
    assert state.error == text.decode()


def test_a_text_that_is_no_unicode_is_shown_as_well_as_may_be() -> None:
    state = parse("k", b"1-1 1 1 0 \xff!")
    assert state is not None
    assert state.error == "\ufffd!"
