"""Publish-subscribe: one event, three groups that know nothing of one another.

Use it when something happened and you do not want to know who cares. Each group has its own position, pace, retries
and dead letters: a slow mail server delays mails and nothing else, and a group added next year starts at the first
event. The three kinds of subscriber are here: `email` has an effect outside Redis, `analytics` takes batches and emits
events of its own, `profile` keeps a read model.
"""

from __future__ import annotations

import os
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import quote

from streamlib import BatchContext, Context, Event, Exact, Prefix, ReadModel, Reject, Retry
from workers.shop.app import app

OUTBOX_ENV = "SHOP_OUTBOX"


class UserRegistered(Event):
    """Somebody has an account now. `country` is an ISO 3166 code."""

    user_id: str
    name: str
    email: str
    country: str


class SignUp(Event):
    """The same for analysts: nothing in it names a person."""

    country: str


users = app.topic("users", UserRegistered, key="user_id", partitions=2)
sign_ups = app.topic("sign-ups", SignUp, key="country")


@app.handler(users, group="email", rate="50/s", timeout=10, retry=Retry(max_attempts=5))
def welcome(event: UserRegistered, ctx: Context) -> None:
    """Slow, and outside Redis. A plain function runs in a thread; `rate` is what the mail server takes."""
    if "@" not in event.email:
        raise Reject(f"{event.email!r} is no mail address")  # a retry would not mend it
    deliver(event, ctx.idempotency_key)


@app.handler(users, group="analytics")
async def count(events: list[UserRegistered], ctx: BatchContext) -> None:
    """Fast: hundreds of events in one run. What it emits settles with the events: each counts once, crash or not."""
    for event in events:
        ctx.of(event).publish(sign_ups, SignUp(country=event.country))


class Profile(ReadModel):
    """What a user's page shows."""

    user_id: str
    name: str
    country: str


profiles = app.projection("profile", users, Profile, key="user_id", indexes=[Exact("country"), Prefix("name")])


@profiles.on(UserRegistered)
def registered(row: Profile | None, event: UserRegistered) -> Profile:
    return Profile(user_id=event.user_id, name=event.name, country=event.country)


class CountryRow(ReadModel):
    """How many have signed up from a country."""

    country: str
    users: int = 0


countries = app.projection("countries", sign_ups, CountryRow, key="country")


@countries.on(SignUp)
def signed_up(row: CountryRow | None, event: SignUp) -> CountryRow:
    return CountryRow(country=event.country, users=(row.users if row else 0) + 1)


def deliver(event: UserRegistered, key: str) -> None:
    """Hand a mail over: to a folder, as a test mail server would keep it.

    A run may be repeated (its worker died before Redis heard of the end), so the receiver must tell a repeat: the
    idempotency key names the file, and a mail that comes twice is one file.
    """
    name = quote(key, safe=":")
    mail = EmailMessage()
    mail["To"] = event.email
    mail["Subject"] = f"Welcome, {event.name}"
    mail["Message-ID"] = f"<{name}@shop.example>"
    outbox = Path(os.environ.get(OUTBOX_ENV, "outbox"))
    outbox.mkdir(parents=True, exist_ok=True)
    (outbox / f"{name}.eml").write_bytes(bytes(mail))
