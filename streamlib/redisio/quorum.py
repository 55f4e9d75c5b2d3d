"""Whether the sentinels that redis.url names could make another server the primary."""

from __future__ import annotations

import asyncio
from typing import Literal

from msgspec import Struct

from streamlib.redisio.address import Host, read_address
from streamlib.redisio.clients import ClientMaker
from streamlib.redisio.failures import CLIENT_ERRORS, ErrorClass, classify
from streamlib.settings import RedisSettings

Verdict = Literal["enough", "too_few", "silent", "denied"]


class Watcher(Struct, frozen=True):
    """What one sentinel says of itself and the others; `told` in its words."""

    where: str
    verdict: Verdict
    told: str = ""


async def watchers(settings: RedisSettings) -> list[Watcher]:
    """Ask every sentinel, in the order of the address; nothing for an address without any. Raises ConfigError."""
    address = read_address(settings.url)
    if address.scheme != "sentinel":
        return []
    maker = ClientMaker(settings, address)
    return await asyncio.gather(*(_ask(maker, host, address.name, settings.timeout_s) for host in address.hosts))


async def _ask(maker: ClientMaker, host: Host, name: str, timeout_s: float) -> Watcher:
    where = f"{host[0]}:{host[1]}"
    client = maker.sentinel(host, timeout_s)
    try:
        await client.execute_command("SENTINEL", "CKQUORUM", name)  # type: ignore[no-untyped-call]
    except CLIENT_ERRORS as error:
        return Watcher(where, _verdict(error), str(error))
    finally:
        await client.aclose()
    return Watcher(where, "enough")


def _verdict(error: Exception) -> Verdict:
    if "NOQUORUM" in str(error):
        return "too_few"
    return "denied" if classify(error) is ErrorClass.CONFIG else "silent"
