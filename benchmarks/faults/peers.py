"""Which libraries meet the faults: how each is started, what it sends, what it cannot decode, with which settings."""

import json
import sys
from collections.abc import Mapping

from msgspec import Struct

from benchmarks.faults.deeds import IDLE_S
from streamlib.redisio.scripts import Script

_APPS = "benchmarks.faults.apps"
_BROKEN = b"\xff{ no codec reads this"
_CELERY = json.dumps(
    {
        "body": "no codec reads this",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": "work", "id": "bad"},
        "properties": {"delivery_tag": "bad", "delivery_info": {"exchange": "", "routing_key": "celery"}},
    }
)
Command = tuple[str | bytes, ...]


class Peer(Struct, frozen=True):
    """A library: the words that start its worker, behind `python`; packages whose versions count."""

    name: str
    words: tuple[str, ...]
    packages: tuple[str, ...]
    read: bytes
    """Stands in the request that brings events to the worker..."""
    ack: bytes
    """... and in the one that acknowledges them."""
    undecodable: tuple[Command, ...]
    """Commands that put a message there whose envelope is the library's and whose body is not."""
    settings: str
    foreign: tuple[Command, ...] = ()
    """A stream's entry with other fields, as another program may add it."""
    idle_s: float = IDLE_S
    processes: int = 1
    """Processes of one worker that run handlers."""
    python: str = sys.executable

    @property
    def command(self) -> list[str]:
        return [self.python, *self.words]


PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "streamlib",
            ("-m", "streamlib", "run", f"{_APPS}.streamlib:app", "--no-http"),
            ("streamlib", "redis"),
            b"XREADGROUP",
            Script("settle").sha.encode(),
            (("XADD", "events", "*", "id", "bad", "type", "Job", "v", "1", "key", "", "data", _BROKEN),),
            "lease_ms=3000, Retry(max_attempts=5), concurrency=10; crash_limit=3 is the default",
            foreign=(("XADD", "events", "*", "hello", "world"),),
        ),
        Peer(
            "taskiq",
            ("-m", "taskiq", "worker", f"{_APPS}.taskiq:broker", "--workers", "1", "--max-async-tasks", "10"),
            ("taskiq-redis", "taskiq", "redis"),
            b"XREADGROUP",
            b"XACK",
            (("XADD", "taskiq", "*", "data", _BROKEN),),
            'RedisStreamBroker(idle_timeout=3000, unacknowledged_lock_timeout=3, xread_count=10, consumer_id="0"), '
            "SmartRetryMiddleware(default_retry_count=5), acknowledged when_saved (default)",
            foreign=(("XADD", "taskiq", "*", "hello", "world"),),
        ),
        Peer(
            "faststream",
            ("-m", "faststream", "run", f"{_APPS}.faststream:app"),
            ("faststream", "redis"),
            b"XREADGROUP",
            b"XACK",
            (("XADD", "events", "*", "__data__", _BROKEN),),
            "StreamSub(group, consumer, max_records=1) and a second StreamSub(min_idle_time=3000), NACK_ON_ERROR",
            foreign=(("XADD", "events", "*", "hello", "world"),),
        ),
        Peer(
            "streaq",
            ("-m", "streaq", "run", f"{_APPS}.streaq:worker"),
            ("streaq", "coredis"),
            b"XREADGROUP",
            b"XACK",
            (
                ("SET", "streaq:default:task:data:bad", _BROKEN),
                ("XADD", "streaq:default:queues:normal", "*", "task_id", "bad", "enqueue_time", "1"),
            ),
            "Worker(concurrency=10, idle_timeout=3), task(max_tries=5)",
            foreign=(("XADD", "streaq:default:queues:normal", "*", "hello", "world"),),
        ),
        Peer(
            "arq",
            ("-c", "from arq.cli import cli; cli()", f"{_APPS}.arq.WorkerSettings"),
            ("arq", "redis"),
            b"PSETEX",
            b"ZREM",
            (("SET", "arq:job:bad", _BROKEN), ("ZADD", "arq:queue", "1", "bad")),
            "job_timeout=3 (arq adds 10 s), max_tries=5, retry_jobs=True, max_jobs=10, a _job_id",
            idle_s=IDLE_S + 10,
        ),
        Peer(
            "dramatiq",
            ("-m", "dramatiq", f"{_APPS}.dramatiq", "--processes", "1", "--threads", "10"),
            ("dramatiq", "redis"),
            b"\r\nfetch\r\n",
            b"\r\nack\r\n",
            (("HSET", "dramatiq:default.msgs", "bad", _BROKEN), ("RPUSH", "dramatiq:default", "bad")),
            "RedisBroker(heartbeat_timeout=3000, maintenance_chance=1000000 of a million), max_retries=5, 10 threads",
        ),
        Peer(
            "saq",
            ("-m", "saq", f"{_APPS}.saq.settings"),
            ("saq", "redis"),
            b"LMOVE",
            b"LREM",
            (("SET", "saq:job:default:bad", _BROKEN), ("RPUSH", "saq:default:queued", "saq:job:default:bad")),
            'timeout=3, retries=5, timers={"sweep": 1}, concurrency=10, a key',
        ),
        Peer(
            "celery",
            ("-m", "celery", "-A", f"{_APPS}.celery:app", "worker", "-c", "4", "-l", "WARNING"),
            ("celery", "kombu", "redis"),
            b"BRPOP",
            b"HDEL",
            (("LPUSH", "celery", _CELERY),),
            "acks_late, reject_on_worker_lost, prefetch_multiplier=1, visibility_timeout=3, "
            "unacked_restore_interval=1, unacked_restore_throttle=1, max_retries=5, prefork with 4 processes",
            processes=4,
        ),
    )
}
