"""`streamlib acl`: the rights that a user in Redis needs, as a line to paste."""

from __future__ import annotations

import re

import click

from streamlib.cli.app_import import load_app
from streamlib.cli.options import Given, json_option, shared_options
from streamlib.cli.output import note, print_json
from streamlib.keys import Keys, check_name
from streamlib.ops.acl import ROLES, left_out, rules
from streamlib.redisio.address import database_of

_USER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")


def _user(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    if name is not None and not _USER.fullmatch(name):
        raise click.BadParameter("a name is 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    return name


def _hash(_: click.Context, __: click.Parameter, text: str | None) -> str | None:
    if text is not None and not _HASH.fullmatch(text):
        raise click.BadParameter("it is the SHA-256 of the password, 64 lower-case hex digits")
    return text


@click.command("acl", epilog="Roles: " + "; ".join(f"{name} {role.does}" for name, role in ROLES.items()) + ".")
@click.option(
    "--role", "roles", type=click.Choice([*ROLES]), multiple=True, required=True,
    help="What the user does; may be repeated.",
)  # fmt: skip
@click.option("--user", callback=_user, help="Its name.  [default: streamlib-ROLE]")
@click.option("--topic", "topics", multiple=True, metavar="TOPIC", help="Only this topic; may be repeated.")
@click.option("--app", "app_path", metavar="APP", help="Only the topics of this app, given as module:attribute.")
@click.option(
    "--password-hash", callback=_hash, metavar="HEX", help="SHA-256 of the password, which replaces any other."
)
@click.option(
    "--server", default="", metavar="NAME", help="As redis-8.4 or valkey-9.1: with commands that older ones lack."
)
@json_option
@shared_options
def command(
    given: Given,
    roles: tuple[str, ...],
    user: str | None,
    topics: tuple[str, ...],
    app_path: str | None,
    password_hash: str | None,
    server: str,
    as_json: bool,
) -> None:
    """Print the ACL SETUSER line for a user with exactly the rights that a role needs. Asks no Redis.

    An administrator pastes it into redis-cli. It replaces the rights that the user had and leaves its passwords as they
    are; a new user has none, and cannot log in until it is given one: ACL SETUSER name >password.
    """
    settings = given.settings()
    chosen = _topics(topics, app_path)
    select = database_of(settings.redis.url) != 0
    granted = rules(roles, Keys(settings.redis.namespace), chosen, server=server, select=select)
    if password_hash:
        granted = ["resetpass", f"#{password_hash}", *granted]
    name = user or f"streamlib-{'-'.join(dict.fromkeys(roles))}"
    line = " ".join(["ACL SETUSER", name, *granted])
    if as_json:
        print_json({"user": name, "roles": [*roles], "rules": granted, "line": line})
    else:
        click.echo(line)
    if absent := left_out(roles, server):
        note(f"without {', '.join(absent)}, which not every server has; name yours with --server")
    if not chosen and not settings.redis.namespace:
        note("for topics of any name: limit it with --app or --topic")


def _topics(names: tuple[str, ...], app_path: str | None) -> dict[str, int | None]:
    """Topic -> partitions, None where they are not known."""
    found: dict[str, int | None] = {check_name("topic", name): None for name in names}
    if app_path is not None:
        found |= {name: topic.spec.partitions for name, topic in load_app(app_path).topics.items()}
    return found
