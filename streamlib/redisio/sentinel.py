"""Finds the primary by its sentinels, and connections that lead to no other server than to that primary."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import redis
import redis.asyncio
import redis.exceptions
from msgspec import Struct

from streamlib.redisio.address import Address, Host
from streamlib.redisio.clients import ClientMaker
from streamlib.redisio.failures import CLIENT_ERRORS, ErrorClass, SetupError, classify
from streamlib.redisio.packing import Packed

_ASK_S = 1.0
_WATCH_S = 1.0
_MASTER = ("SENTINEL", "MASTER")
_ADDRESS = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME")
_OTHERS = ("SENTINEL", "SENTINELS")


class _Answer(Struct, frozen=True):
    """What one sentinel says of the primary; the highest epoch is the latest failover."""

    primary: Host
    epoch: int
    down: bool
    moving: bool
    """This sentinel is making another server the primary."""


class Sentinels:
    """Where the primary is, for all clients of one process.

    A majority of the sentinels is asked whenever a connection is made, and every second while the loop runs. Among the
    answers the latest failover counts: a sentinel that was cut off still names the old primary. When the primary is
    another one, connections to the old one are cut, also those that wait for a reply: a frozen server never sends one.
    """

    def __init__(self, address: Address, maker: ClientMaker, timeout_s: float) -> None:
        self.primary: Host | None = None
        self._name = address.name
        self._hosts = address.hosts
        self._quorum = len(address.hosts) // 2 + 1
        self._maker = maker
        self._ask_s = min(timeout_s, _ASK_S)
        self._clients: dict[Host, redis.asyncio.Redis] = {}
        self._asking: asyncio.Task[Host] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._connections: weakref.WeakSet[_Managed] = weakref.WeakSet()

    async def find(self) -> Host:
        """Ask now; who asks at the same time shares the answer. Raises SetupError and what the client raises."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(self._quorum), name="sentinels")
            self._asking.add_done_callback(_heard)
        found = await asyncio.shield(self._asking)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), name="sentinel watch")
        return found

    def find_sync(self) -> Host:
        """The same for a thread."""
        answers: list[_Answer] = []
        errors: list[Exception] = []
        for host in self._hosts:
            client = self._maker.sentinel_sync(host, self._ask_s)
            try:
                answer = _read(client.execute_command(*_MASTER, self._name))  # type: ignore[no-untyped-call]
                if answer.moving:
                    answer = _promoted(answer, client.execute_command(*_ADDRESS, self._name))  # type: ignore[no-untyped-call]
                answers.append(answer)
            except CLIENT_ERRORS as error:
                errors.append(_told(error, host))
            finally:
                client.close()
            if len(answers) >= self._quorum:
                break
        found = _latest(answers)
        if found is None:
            raise self._none(answers, errors, self._names_sync() if _all_unknown(answers, errors) else [])
        self.primary = found
        return found

    async def settled(self) -> bool:
        """Whether the primary that we know is the one, and no sentinel is replacing it: a majority answers, the rest is
        gone. One that has just turned silent may be the one that replaces it, of which the others hear at the end."""
        found = await asyncio.gather(*map(self._ask_one, self._hosts), return_exceptions=True)
        answers = [one for one in found if isinstance(one, _Answer)]
        silent = sum(isinstance(one, redis.exceptions.TimeoutError) for one in found)
        enough = len(answers) >= self._quorum and _latest(answers) == self.primary
        return enough and not any(one.moving for one in answers) and (not silent or await self._are_down(silent))

    async def _are_down(self, count: int) -> bool:
        """Whether a majority of the sentinels has found so many others down: a host that is off answers nobody, and
        must not keep everybody from publishing."""
        asked = (self._client(host).execute_command(*_OTHERS, self._name) for host in self._hosts)  # type: ignore[no-untyped-call]
        told = await asyncio.gather(*asked, return_exceptions=True)
        return sum(not isinstance(one, BaseException) and _down_in(one) >= count for one in told) >= self._quorum

    def add(self, connection: _Managed) -> None:
        self._connections.add(connection)

    async def close(self) -> None:
        for task in (self._watching, self._asking):
            if task is not None and task.get_loop() is asyncio.get_running_loop():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for client in self._clients.values():
            await client.aclose()

    async def _watch(self) -> None:
        """A failover that somebody ordered leaves the old primary writable for seconds: nothing else would tell."""
        while True:
            await asyncio.sleep(_WATCH_S)
            with contextlib.suppress(*CLIENT_ERRORS):
                await self._ask(enough=len(self._hosts))

    async def _ask(self, enough: int) -> Host:
        """Where the primary is, by the first `enough` answers, or by as many as there are."""
        asked = [asyncio.create_task(self._ask_one(host)) for host in self._hosts]
        answers: list[_Answer] = []
        errors: list[Exception] = []
        try:
            for one in asyncio.as_completed(asked):
                try:
                    answers.append(await one)
                except CLIENT_ERRORS as error:
                    errors.append(error)
                if len(answers) >= enough:
                    break
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        found = _latest(answers)
        if found is None:
            raise self._none(answers, errors, await self._names() if _all_unknown(answers, errors) else [])
        self._leave_others(found)
        return found

    async def _ask_one(self, host: Host) -> _Answer:
        client = self._client(host)
        try:
            answer = _read(await client.execute_command(*_MASTER, self._name))  # type: ignore[no-untyped-call]
            if answer.moving:
                answer = _promoted(answer, await client.execute_command(*_ADDRESS, self._name))  # type: ignore[no-untyped-call]
            return answer
        except CLIENT_ERRORS as error:
            told = _told(error, host)
            if told is error:
                raise
            raise told from error

    def _client(self, host: Host) -> redis.asyncio.Redis:
        if host not in self._clients:
            self._clients[host] = self._maker.sentinel(host, self._ask_s)
        return self._clients[host]

    def _leave_others(self, primary: Host) -> None:
        self.primary = primary
        for connection in list(self._connections):
            connection.leave_unless(primary)

    def _none(self, answers: list[_Answer], errors: list[Exception], names: list[str]) -> Exception:
        """The error that says why there is no primary."""
        if answers:
            return redis.exceptions.ConnectionError(f"the sentinels say that the primary of {self._name!r} is down")
        for error in errors:
            if isinstance(error, SetupError) and not _is_unknown(error):
                return error
            if classify(error) is ErrorClass.CONFIG and not isinstance(error, SetupError):
                return error
        if any(map(_is_unknown, errors)):
            known = ", ".join(names) or "none"
            return SetupError(f"the sentinels know no primary by the name {self._name!r}; they know: {known}")
        told = "; ".join(str(error) for error in errors)
        return redis.exceptions.ConnectionError(f"no sentinel answers: {told}")

    async def _names(self) -> list[str]:
        for host in self._hosts:
            with contextlib.suppress(*CLIENT_ERRORS):
                return _names(await self._client(host).execute_command("SENTINEL", "MASTERS"))  # type: ignore[no-untyped-call]
        return []

    def _names_sync(self) -> list[str]:
        for host in self._hosts:
            client = self._maker.sentinel_sync(host, self._ask_s)
            with client, contextlib.suppress(*CLIENT_ERRORS):
                return _names(client.execute_command("SENTINEL", "MASTERS"))  # type: ignore[no-untyped-call]
        return []


class _Unknown(SetupError):
    """A sentinel does not know the name."""


def _is_unknown(error: Exception) -> bool:
    return isinstance(error, _Unknown)


def _all_unknown(answers: list[_Answer], errors: list[Exception]) -> bool:
    return not answers and any(map(_is_unknown, errors))


def _told(error: Exception, host: Host) -> Exception:
    """A sentinel's error with its address, and what it means where only the words say it."""
    where = f"{host[0]}:{host[1]}"
    if "No such master" in str(error):
        return _Unknown(f"{where} does not know it")
    if "unknown command" in str(error):
        return SetupError(f"{where} is no sentinel")
    return error


def _latest(answers: list[_Answer]) -> Host | None:
    """The primary of the latest failover, None while it is down."""
    latest = max(answers, key=lambda answer: (answer.epoch, not answer.down), default=None)
    return None if latest is None or latest.down else latest.primary


def _names(reply: Sequence[Sequence[bytes]]) -> list[str]:
    return sorted(dict(zip(one[::2], one[1::2], strict=False))[b"name"].decode() for one in reply)


def _down_in(reply: Sequence[Sequence[bytes]]) -> int:
    """How many of the other sentinels one has found down."""
    return sum(b"s_down" in dict(zip(one[::2], one[1::2], strict=False))[b"flags"].split(b",") for one in reply)


def _heard(task: asyncio.Task[Any]) -> None:
    """Whoever asked may have gone away; the error is nobody's then."""
    if not task.cancelled():
        task.exception()


def _read(reply: Sequence[bytes]) -> _Answer:
    told = dict(zip(reply[::2], reply[1::2], strict=False))
    flags = told[b"flags"].split(b",")
    primary = (told[b"ip"].decode(), int(told[b"port"]))
    down = b"s_down" in flags or b"o_down" in flags
    return _Answer(primary, int(told.get(b"config-epoch", 0)), down, b"failover_in_progress" in flags)


def _promoted(answer: _Answer, named: Sequence[bytes]) -> _Answer:
    """The answer of a sentinel that makes another server the primary: until all replicas follow, SENTINEL MASTER tells
    the one before with the new epoch; the address is that of the new one as soon as it was promoted."""
    primary = (named[0].decode(), int(named[1]))
    return answer if primary == answer.primary else _Answer(primary, answer.epoch, down=False, moving=True)


def _must_be_primary(reply: Any, host: str, port: int) -> None:
    if reply[0] != b"master":
        raise redis.exceptions.ReadOnlyError(f"{host}:{port} is no primary any more (or not yet), as its ROLE says")


class _Managed(redis.asyncio.Connection):
    """A connection to whichever server is the primary; asked for its role before anything else."""

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        super().__init__(**options)
        self._sentinels = sentinels
        self._address: Host | None = None
        sentinels.add(self)

    async def connect(self) -> None:
        """Called before each command too: an idle connection to a primary of the past is not used again."""
        if self.is_connected:
            if self._address == self._sentinels.primary:
                return
            await self.disconnect(nowait=True)
        self._address = await self._sentinels.find()
        self.host, self.port = self._address
        await super().connect()  # type: ignore[no-untyped-call]

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health)
        await self.send_command("ROLE", check_health=False)
        _must_be_primary(await self.read_response(), self.host, self.port)

    def leave_unless(self, primary: Host) -> None:
        """Cut the connection, whoever waits on it, if it leads to another server."""
        if self.is_connected and self._address != primary and self._writer is not None:
            self._writer.transport.abort()


class _Tcp(Packed, _Managed):
    pass


class _Tls(Packed, _Managed, redis.asyncio.SSLConnection):
    pass


class _ManagedSync(redis.Connection):
    """The same for a thread."""

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._sentinels = sentinels
        self._address: Host | None = None

    def connect(self) -> None:
        if self.is_connected:
            if self._address == self._sentinels.primary:
                return
            self.disconnect()  # type: ignore[no-untyped-call]
        self._address = self._sentinels.find_sync()
        self.host, self.port = self._address
        super().connect()  # type: ignore[no-untyped-call]

    def on_connect_check_health(self, check_health: bool = True) -> None:
        super().on_connect_check_health(check_health)
        self.send_command("ROLE", check_health=False)  # type: ignore[no-untyped-call]
        _must_be_primary(self.read_response(), self.host, self.port)


class _TlsSync(_ManagedSync, redis.SSLConnection):
    pass


class SentinelClients:
    """Clients of the primary."""

    one_node = True

    def __init__(self, address: Address, maker: ClientMaker, timeout_s: float) -> None:
        self._maker = maker
        self._sentinels = Sentinels(address, maker, timeout_s)

    def client(self, timeout_s: float, key: str | None = None) -> redis.asyncio.Redis:
        return self._maker.managed(_Tls if self._maker.tls else _Tcp, timeout_s, sentinels=self._sentinels)

    def sync_client(self, timeout_s: float) -> redis.Redis:
        kind = _TlsSync if self._maker.tls else _ManagedSync
        return self._maker.managed_sync(kind, timeout_s, sentinels=self._sentinels)

    async def nodes(self, timeout_s: float) -> Mapping[str, redis.asyncio.Redis]:
        return {"": self.client(timeout_s)}

    def beside(self, host: Host, timeout_s: float) -> redis.asyncio.Redis:
        return self._maker.node(host, timeout_s)

    async def settled(self) -> bool:
        return await self._sentinels.settled()

    async def close(self) -> None:
        await self._sentinels.close()
