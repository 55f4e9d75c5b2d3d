"""The shop's notifications: three groups of one topic, each at its own pace."""

import threading
from email import message_from_bytes
from pathlib import Path

import pytest
import redis

from streamlib import App
from tests.helpers.delivering import burst, dead_letters, running
from tests.helpers.shop import open_shop
from tests.helpers.waiting import eventually
from workers.shop import notifications
from workers.shop.notifications import (
    OUTBOX_ENV,
    CountryRow,
    Profile,
    UserRegistered,
    countries,
    deliver,
    profiles,
    users,
)

GROUPS = ["email", "analytics", "profile", "countries"]
COUNTRIES = ("NL", "DE", "NL", "FR", "NL", "DE")
COUNTED = [CountryRow(country="DE", users=2), CountryRow(country="FR", users=1), CountryRow(country="NL", users=3)]


@pytest.fixture(autouse=True)
def outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(OUTBOX_ENV, str(tmp_path / "outbox"))
    return tmp_path / "outbox"


def registered(n: int, email: str = "") -> UserRegistered:
    return UserRegistered(
        user_id=f"u-{n}", name=f"User {n}", email=email or f"u{n}@example.com", country=COUNTRIES[n % 6]
    )


async def register_six() -> None:
    for n in range(6):
        await users.publish(registered(n), id=f"reg-{n}")


async def test_each_group_does_its_part_of_every_registration(redis_url: str, outbox: Path) -> None:
    async with open_shop(redis_url) as app:
        await register_six()
        assert await burst(app, GROUPS) == 0
        assert await profiles.count() == 6
        assert await profiles.prefix("name", "user 3") == [Profile(user_id="u-3", name="User 3", country="FR")]
        assert [row.user_id for row in await profiles.find(country="NL")] == ["u-0", "u-2", "u-4"]
        assert await countries.rows() == COUNTED
    mails = [message_from_bytes(file.read_bytes()) for file in outbox.iterdir()]
    assert sorted(str(mail["To"]) for mail in mails) == [f"u{n}@example.com" for n in range(6)]


async def test_a_slow_mail_server_delays_nobody_else(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    mails: list[str] = []

    def slow(event: UserRegistered, key: str) -> None:
        assert answers.wait(30)
        mails.append(event.user_id)

    monkeypatch.setattr(notifications, "deliver", slow)
    async with open_shop(redis_url) as app:
        try:
            async with running(app, GROUPS):
                await register_six()
                await eventually(lambda: others_are_done(app))
                assert mails == []
                answers.set()
                await eventually(lambda: sorted(mails) == [f"u-{n}" for n in range(6)])
        finally:
            answers.set()  # a thread cannot be stopped


async def test_what_fails_in_one_group_runs_again_there_only(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mail fails once: a mail server that is away for longer than the retries last would make dead letters."""
    tries: list[str] = []
    mails: list[str] = []

    def failing(event: UserRegistered, key: str) -> None:
        tries.append(event.user_id)
        if tries.count(event.user_id) == 1:
            raise ConnectionError("no route to the mail server")
        mails.append(event.user_id)

    monkeypatch.setattr(notifications, "deliver", failing)
    async with open_shop(redis_url) as app, running(app, GROUPS):
        await register_six()
        await eventually(lambda: others_are_done(app))
        await eventually(lambda: sorted(mails) == [f"u-{n}" for n in range(6)])
        assert sorted(tries) == sorted(2 * mails)
        assert await countries.rows() == COUNTED, "nobody else has seen an event twice"


async def test_an_address_that_is_none_is_a_dead_letter_of_the_mails_only(
    redis_url: str, client: redis.Redis, outbox: Path
) -> None:
    async with open_shop(redis_url) as app:
        await users.publish(registered(1, email="nowhere"))
        await users.publish(registered(2))
        assert await burst(app, GROUPS) == 0
        assert await profiles.count() == 2
    letters = [letter for n in range(2) for letter in dead_letters(client, f"users.{n}", "email")]
    assert [letter["dl-error"] for letter in letters] == ["Reject: 'nowhere' is no mail address"]
    assert len(list(outbox.iterdir())) == 1


def test_a_mail_that_comes_twice_is_one_file(outbox: Path) -> None:
    for _ in range(2):
        deliver(registered(1), "users:email:a/b")
    (mail,) = outbox.iterdir()
    assert message_from_bytes(mail.read_bytes())["Subject"] == "Welcome, User 1"


async def others_are_done(app: App) -> bool:
    return await profiles.count() == 6 and await countries.rows() == COUNTED
