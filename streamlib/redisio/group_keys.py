"""Deletes everything that a group has on the partitions of its topic; each step may be done again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from streamlib.keys import StreamKeys
from streamlib.redisio.scripts import Executes, Script

_scan = Script("scan", reads_only=True)
_LOOK_AT = 2_000
_UNLINK_CHUNK = 500


async def groups_on(redis: Executes, stream: str) -> frozenset[str]:
    """The consumer groups that exist on a stream, whoever made them."""
    if not await redis.execute("EXISTS", stream):
        return frozenset()
    rows = await redis.execute("XINFO", "GROUPS", stream)
    return frozenset(dict(zip(row[::2], row[1::2], strict=True))[b"name"].decode() for row in rows)


async def destroy(redis: Executes, keys: StreamKeys, group: str) -> None:
    """Destroy the group on one partition and delete its streams, retries, keys and owner there."""
    if await redis.execute("EXISTS", keys.stream):
        await redis.execute("XGROUP", "DESTROY", keys.stream, group)
    await redis.execute(
        "UNLINK", keys.again(group), keys.retry(group), keys.retry_body(group), keys.dead(group), keys.suspect(group),
        keys.owner(group), keys.key_states(group), keys.replay(group), keys.marks(group),
    )  # fmt: skip


async def many_keys(
    redis: Executes, partitions: Sequence[StreamKeys], kinds: Sequence[str], *, one_node: bool
) -> AsyncIterator[list[bytes]]:
    """What cannot be named without looking; of one slot at a time.

    `kinds` are what stands behind the tag: "idem:<group>" for idempotency keys, "done:<group>" for sets of done marks,
    "view:<name>" for the rows and indexes of a view, "view:<name>:<generation>" for those of one generation. Where one
    node has everything it is looked through once for all partitions.
    """
    for keys in partitions[:1] if one_node else partitions:
        tag = "{*}" if one_node and len(partitions) > 1 else "{" + keys.stream + "}"
        for kind in kinds:
            async for found in _walk(redis, keys, f"{tag}:{kind}:*"):
                for some in _by_partition(found, partitions, f":{kind}:"):
                    yield some


async def unlink(redis: Executes, names: Sequence[bytes]) -> int:
    """Delete keys of one slot; how many were there."""
    deleted = 0
    for start in range(0, len(names), _UNLINK_CHUNK):
        deleted += await redis.execute("UNLINK", *names[start : start + _UNLINK_CHUNK])
    return deleted


async def _walk(redis: Executes, keys: StreamKeys, pattern: str) -> AsyncIterator[list[bytes]]:
    cursor = b"0"
    while True:
        cursor, found = await _scan.run(redis, [keys.stream], [cursor, pattern, _LOOK_AT])
        if found:
            yield found
        if cursor == b"0":
            return


def _by_partition(names: Sequence[bytes], partitions: Sequence[StreamKeys], middle: str) -> list[list[bytes]]:
    """The names that belong to these partitions, with `middle` right after the tag: names of other topics may match a
    pattern with a wildcard, and so may ids of events and rows, which are free text."""
    found: dict[bytes, list[bytes]] = {keys.stream.encode(): [] for keys in partitions}
    for name in names:
        end = name.find(b"}")
        of_stream = found.get(name[1:end])
        if of_stream is not None and name.startswith(middle.encode(), end + 1):
            of_stream.append(name)
    return [some for some in found.values() if some]
