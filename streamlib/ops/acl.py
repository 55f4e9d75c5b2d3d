"""Which commands and keys of Redis each role needs: the one table behind `streamlib acl` and the tests.

Redis looks at the rights of commands inside scripts too, and does not undo what a script had written before it was
refused. So the rights of a role are complete or useless, and each command here has a test that fails without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from streamlib.errors import ConfigError
from streamlib.keys import Keys, StreamKeys

_TOPOLOGY = "ROLE CLUSTER|SLOTS ASKING"
"""To find the primary behind sentinels, and each key's node in a cluster."""
_OPEN = "INFO HSETNX HGET HMGET HSET TIME EXISTS XINFO|STREAM XGROUP|CREATE"
"""To open an app: it looks at the server, and registers its topics and groups."""
_PUBLISH = "EVALSHA EVAL XADD XLEN GET SET ZADD ZCARD ZSCORE HLEN PEXPIRE PERSIST TYPE"
_DURABLE = "CLIENT|SETNAME CLIENT|GETNAME WAIT WAITAOF"
_INSPECT = (
    "HGETALL HGET HMGET TIME EXISTS XINFO|STREAM XINFO|GROUPS XINFO|CONSUMERS XLEN XPENDING XRANGE ZCARD HSCAN "
    "EVALSHA_RO EVAL_RO"
)
"""For `streamlib info`, and the gauges of a worker."""
_LOOK = f"PING INFO TYPE XREVRANGE {_INSPECT}"

_SINCE: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "MSETEX": {"redis": (8, 4), "valkey": (9, 1)},
    "WAITAOF": {"redis": (7, 2), "valkey": (7, 2)},
}
"""Commands that not every server has, and since when: ACL SETUSER refuses names that it does not know."""


class Role(Struct, frozen=True):
    """What somebody may do, in words parted by spaces: commands, key patterns to read and write, patterns to read."""

    does: str
    commands: str
    keys: str
    reads: str


ROLES: Mapping[str, Role] = {
    "producer": Role(
        "opens an app and publishes",
        f"{_OPEN} {_PUBLISH} {_DURABLE}",
        "topics group stream again dedup producers later",
        "views",
    ),
    "worker": Role(
        "runs handlers, and publishes",
        f"{_OPEN} {_PUBLISH} {_DURABLE} {_INSPECT} XREADGROUP XACK XDEL XCLAIM XAUTOCLAIM XREAD XREVRANGE XTRIM "
        "XGROUP|DELCONSUMER MGET MSETEX DEL HDEL HINCRBY SADD SISMEMBER ZRANGEBYSCORE ZREM",
        "idem topics group stream again dedup producers later done retry dead suspect states owner limit workers",
        "views",
    ),
    "projector": Role(
        "keeps read models, and rebuilds them",
        f"{_OPEN} {_INSPECT} EVALSHA EVAL TYPE XREAD XADD XTRIM XGROUP|SETID XGROUP|DESTROY MGET MSETEX SET DEL HDEL "
        "ZADD ZREM ZRANGE ZRANGEBYSCORE UNLINK SCAN",
        "view idem topics group stream again dead owner workers views later producers retry suspect states done runs "
        "limit progress",
        "",
    ),
    "aggregates": Role(
        "loads and saves aggregates, dispatches and sends commands",
        f"{_OPEN} {_PUBLISH} {_DURABLE} EVALSHA_RO EVAL_RO LLEN LRANGE LINDEX RPUSH XDEL PTTL",
        "agg snap cmd topics group stream again dedup producers later",
        "views",
    ),
    "reader": Role(
        "opens an app and reads its read models",
        f"{_OPEN} EVALSHA_RO EVAL_RO HGETALL HEXISTS ZINTERCARD ZCARD ZCOUNT ZRANGE TYPE",
        "topics group stream again",
        "view views",
    ),
    "observer": Role(
        "looks: check, info, ps, exporter, groups ls, keys ls, dlq ls, groups, show and export",
        _LOOK,
        "",
        "topics group workers views stream again retry dead owner states later producers suspect",
    ),
    "operator": Role(
        "every verb of the command line but run, publish and rebuild",
        f"{_LOOK} EVALSHA EVAL XADD XDEL XACK SET GET HSET HSETNX HDEL SISMEMBER ZSCORE ZRANGE PEXPIRE DEL UNLINK SCAN "
        "XGROUP|CREATE XGROUP|DESTROY",
        "topics group limit progress workers views stream all",
        "",
    ),
}

_NEVER = (1 << 30, 0)
_SERVER = re.compile(r"(redis|valkey)-(\d+)\.(\d+)(\.\d+)?")

_ANY_STREAM = "[^{]*"
"""A stream of any name, and nothing of what lies beside one."""

_Patterns = Callable[[Keys, str, StreamKeys], Iterable[str]]

_KEYS: Mapping[str, _Patterns] = {
    "topics": lambda keys, topic, names: [keys.topics()],
    "views": lambda keys, topic, names: [keys.views()],
    "workers": lambda keys, topic, names: [keys.workers()],
    "group": lambda keys, topic, names: [keys.group(topic, "*")],
    "limit": lambda keys, topic, names: [keys.limit(topic, "*")],
    "progress": lambda keys, topic, names: [keys.replay(topic, "*")],
    "stream": lambda keys, topic, names: [_ANY_STREAM if names.stream == "*" else names.stream],
    "again": lambda keys, topic, names: [names.again("*")],
    "idem": lambda keys, topic, names: [names.idem("*", "*")],
    "done": lambda keys, topic, names: [names.marks("*")],
    "retry": lambda keys, topic, names: [names.retry("*"), names.retry_body("*")],
    "dead": lambda keys, topic, names: [names.dead("*")],
    "suspect": lambda keys, topic, names: [names.suspect("*")],
    "states": lambda keys, topic, names: [names.key_states("*")],
    "owner": lambda keys, topic, names: [names.owner("*")],
    "dedup": lambda keys, topic, names: [names.dedup("*")],
    "producers": lambda keys, topic, names: [names.producers()],
    "later": lambda keys, topic, names: [names.later(), names.later_body()],
    "view": lambda keys, topic, names: [names.view("*", "*")],
    "runs": lambda keys, topic, names: [names.replay("*")],
    "all": lambda keys, topic, names: [names.all()],
    "agg": lambda keys, topic, names: [names.aggregate("*")],
    "snap": lambda keys, topic, names: [names.snapshot("*")],
    "cmd": lambda keys, topic, names: [names.answer("*")],
}
"""What a kind of key is called: `topic` and `names` are of one topic, or have "*" for any."""


def commands_of(roles: Sequence[str], server: str = "") -> list[str]:
    """The commands that these roles need together.

    Without `server` ("redis-8.4", "valkey-9.1") those that every supported server has. Raises ConfigError for a server
    of another form.
    """
    kind, version = _server(server)
    wanted = dict.fromkeys(name for role in roles for name in f"{ROLES[role].commands} {_TOPOLOGY}".split())
    return [name for name in wanted if name not in _SINCE or _SINCE[name].get(kind, _NEVER) <= version]


def left_out(roles: Sequence[str], server: str = "") -> list[str]:
    """The commands that these roles would use if the server had them."""
    return sorted({name for role in roles for name in ROLES[role].commands.split()} - {*commands_of(roles, server)})


def rules(
    roles: Sequence[str], keys: Keys, topics: Mapping[str, int | None], *, server: str = "", select: bool = False
) -> list[str]:
    """What stands behind `ACL SETUSER name`, without a password: these rights and no others.

    `topics` have their partition counts, None where it is not known; none at all stand for every topic of the
    namespace. With `select` the user may choose a database.
    """
    commands = [*commands_of(roles, server), *(["SELECT"] if select else [])]
    written = _patterns((name for role in roles for name in ROLES[role].keys.split()), keys, topics)
    read = _patterns((name for role in roles for name in ROLES[role].reads.split()), keys, topics)
    return [
        "on", "clearselectors", "resetchannels", "-@all", *(f"+{name.lower()}" for name in commands),
        "resetkeys", *(f"~{name}" for name in written), *(f"%R~{name}" for name in read if name not in written),
    ]  # fmt: skip


def _patterns(kinds: Iterable[str], keys: Keys, topics: Mapping[str, int | None]) -> list[str]:
    """Each pattern once, in the order of the kinds: Redis tries them one after another."""
    found: dict[str, None] = {}
    for kind in kinds:
        for topic, partitions in (topics or {"*": 1}).items():
            for names in _streams(keys, topic, partitions):
                found |= dict.fromkeys(_KEYS[kind](keys, topic, names))
    return [*found]


def _streams(keys: Keys, topic: str, partitions: int | None) -> list[StreamKeys]:
    """The streams of a topic: one of its name, or one per partition, in a single pattern."""
    one, many = keys.stream(topic, 0, 1), StreamKeys(keys.stream(topic, 0, 1).stream + ".[0-9]*")
    if partitions is None:
        return [one, many]
    return [one] if partitions == 1 else [many]


def _server(text: str) -> tuple[str, tuple[int, int]]:
    if not text:
        return "", (0, 0)
    if (match := _SERVER.fullmatch(text)) is None:
        raise ConfigError(f"server {text!r}: name it like redis-8.4 or valkey-9.1")
    return match[1], (int(match[2]), int(match[3]))
