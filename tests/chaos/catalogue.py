"""The fault catalogue: 78 faults and what must be seen when they happen. Tests that show a row carry its number.

`python -m tests.chaos.all` runs them and prints the table.
"""

from __future__ import annotations

from msgspec import Struct


class Row(Struct, frozen=True):
    """`instead` tells where the design answers the fault in another way than most systems do, and what holds here."""

    number: int
    fault: str
    must: str
    instead: str = ""


# fmt: off
_WORKERS = (
    Row(1, "a worker is killed while handlers run",
        "another runs what it held within lease + reclaim interval, and counts it as reclaimed"),
    Row(2, "a worker is killed between a handler's effect and the ack",
        "effects in Redis are there once; one outside may repeat, under the same idempotency key"),
    Row(3, "a worker is killed while it does house-keeping for others",
        "others carry on without waiting for a lock",
        "there are no such locks: each act is one script, and who leads is read from the register of living workers"),
    Row(4, "a worker is frozen past its lease and wakes",
        "what it still wants to settle is refused and counted as lost; the result of the one that took over stands",
        "the fence is the claim's token; a run that lost its claim is cancelled as soon as a renewal tells so"),
    Row(5, "a handler blocks the event loop",
        "a thread goes on renewing; past worker.stall_s the process says so and ends, and others take its work"),
    Row(6, "a renewal fails",
        "it is tried again soon; nothing is lost while the claim holds, and what was taken over meanwhile is fenced",
        "an expired claim that nobody took may still be renewed, so the handler is not cancelled by a local clock"),
    Row(7, "a handler takes much longer than a lease",
        "it runs once, however long; `timeout=` is the hard cap"),
    Row(8, "a renewal moves the delivery count, or robs the new owner",
        "twenty renewals leave the count as it is; what another has taken is never taken back"),
    Row(9, "an event kills each process that runs it",
        "at worker.crash_limit it is a dead letter of reason crash, while the others flow",
        "suspects run one at a time in a lane beside normal work, not in a child process"),
    Row(10, "neighbours of such an event were fetched with it",
        "none of them is dead-lettered: only starts count as crashes, never Redis' delivery count"),
    Row(11, "a consumer is deleted while entries are pending with it",
        "it goes only in a script that sees nothing pending, also in a race with reads"),
    Row(12, "every start brings a new consumer name",
        "those that were idle for ten leases (a minute at least) are removed; the gauge comes down again"),
    Row(13, "a task is cancelled inside a command",
        "nobody gets the answer of another, and no cancellation is lost"),
    Row(14, "SIGTERM under load, once and again",
        "drained, handed back or left to the lease, and the exit code tells which; a rolling restart costs no attempt"),
    Row(15, "a background loop dies",
        "the worker ends with an error instead of looking alive"),
    Row(16, "a handler ends with SystemExit, CancelledError, RecursionError, or swallows its cancellation",
        "each ends in a named outcome; acked as done is only what returned"),
    Row(17, "an old worker meets a type or version that it does not know",
        "the event waits without spending an attempt for one that does, and is dead-lettered after unknown_ttl"),
)

_CLIENT = (
    Row(18, "a read blocks longer than the socket's timeout",
        "the reader's timeout follows its wait: an idle stream is one read after another on one connection, no errors"),
    Row(19, "the reply to a read is lost",
        "what it brought ages, though its consumer lives, and is claimed within lease + reclaim interval"),
    Row(20, "the reply to a publish is lost",
        "sent again it is stored once, and the first position is the answer",
        "producer id and sequence tell a resend; copies sent by others are told by dedup_window"),
    Row(21, "the reply to a script is lost",
        "sent again it gives the first answer: our own write is neither a conflict nor a lost lease"),
    Row(22, "the network goes silent without closing a connection",
        "reads time out and are counted, readiness goes red, last_poll_timestamp_seconds stands still; it heals alone"),
    Row(23, "a slow and lossy network",
        "it takes longer, and nothing is lost or doubled"),
    Row(24, "the server or the pool has no connection left",
        "waits are bounded, told as not reachable, tried again with pauses; room that comes back is used",
        "this is of the class network: what helps is the same"),
    Row(25, "connections are killed again and again",
        "workers reconnect and stay; nothing is lost"),
    Row(26, "a reply outgrows the server's output buffer",
        "the next one asks for less, in every kind of group: it comes piece by piece; an entry above "
        "limits.payload_bytes that outgrows it alone is a dead letter with its beginning, and its neighbours flow",
        "no entry within limits.payload_bytes is ever given up for it: doctor names a server whose limit is that low"),
    Row(27, "large events outgrow the worker's memory",
        "what is read ahead is bounded by bytes that were seen, not by their number alone"),
    Row(28, "the server forgets its scripts",
        "they are sent whole, once; nobody notices"),
    Row(29, "rights are narrowed or the password changes under a running worker",
        "it takes no work, says that it is not ready, keeps trying, and goes on when it may again",
        "credentials come from the settings at start: new ones by a rolling restart"),
    Row(30, "payloads that are no text, or no event",
        "each is a dead letter with its raw bytes; its neighbours run"),
    Row(31, "batches beyond what Lua can unpack",
        "scripts take 500 events at a time, and thousands of fields"),
)

_SERVER = (
    Row(32, "the server restarts with its data and loads them",
        "workers and publishers wait and go on; effects stay exact, what was acked is not delivered again"),
    Row(33, "the server comes back empty",
        "groups are made again where they were remembered to be, or at 0; stream_lost counts it, the log says it"),
    Row(34, "a stream or a group goes away under a waiting read",
        "the read wakes, and it goes on as in row 33"),
    Row(35, "a key is of another type",
        "the error names the key and the way out; other streams go on, and this one when the key is removed"),
    Row(36, "the server is full",
        "whatever grows is refused before its first write, whatever releases is done; it goes on by itself with room",
        "scripts carry no #!lua line: the order of their first writes does the same"),
    Row(37, "the server evicts keys",
        "refused at start unless allowed aloud; a policy that may not be asked for is a warning"),
    Row(38, "the server cannot write to its disk",
        "work pauses and goes on by itself; nothing has run twice for it"),
    Row(39, "the server dies between two fsyncs",
        "the level says what is kept: `fsync` is refused where it cannot be, and NotConfirmed when it falls short"),
    Row(40, "the server comes back with an older copy of its data",
        "it is told as source_rolled_back; what is ahead of its stream stands still, and no entry id decides a copy"),
    Row(41, "the server stands still for longer than a lease",
        "one renewal period passes before anybody reclaims: nothing runs twice"),
    Row(42, "the server pauses writes for a managed failover",
        "timeouts are tried again; nothing is stored or run twice"),
    Row(43, "commands are forbidden",
        "what is optional is done without, or warned about; what is needed is named"),
    Row(44, "the server's clock jumps, or an entry has an id from the future",
        "epochs only grow, limits and ages stay sane, events flow on behind such an id, the last id refuses",
        "no time is read from ids but ages, which are 0 then; doctor names a stream whose ids lie over an hour ahead"),
    Row(45, "servers of different versions",
        "the scripts are those of Redis 7.0; newer commands are tried and done without"),
)

_COPIES = (
    Row(46, "a failover while reads wait",
        "UNBLOCKED and READONLY mean: look for the primary again; events flow soon after"),
    Row(47, "the old primary freezes instead of dying",
        "its silence ends in a timeout, the new one is used, and what it says on waking changes nothing"),
    Row(48, "what was confirmed by the primary alone is lost in a failover",
        "`primary` says so; `replicas:n` raises NotConfirmed, and what it confirmed is there afterwards"),
    Row(49, "acks are taken back by a failover",
        "outside effects may repeat; effects in Redis were taken back together with them, and are exact"),
    Row(50, "an isolated primary goes on taking writes",
        "with min-replicas-to-write it stops within its max-lag; that pauses the work, and bounds what is lost"),
    Row(51, "replicas lag behind",
        "nothing asks a replica: own writes are read and workers work though all of them stand still"),
    Row(52, "an entry id is given twice, by the old primary and by the new one",
        "the second event runs and is folded: what is remembered of the first goes by event id or went with it"),
    Row(53, "a slot moves under a waiting read",
        "the read finds its new node, long before its own time runs out"),
    Row(54, "a slot is half moved",
        "ASK is followed, TRYAGAIN waits, for as long as redis.retry_s"),
    Row(55, "keys of one script lie in different slots",
        "none does: the server refuses undeclared keys, and every script runs under that rule"),
    Row(56, "a shard is lost",
        "its partitions wait, the others go on, workers stay ready for them; back, it is worked on"),
    Row(57, "recovery that works on one server only",
        "a killed worker on a cluster loses nothing; the conformance cases run in every place"),
)

_EVENTS = (
    Row(58, "pending entries were deleted",
        "they are named in the log, counted as stream_lost, and leave the pending list"),
    Row(59, "a long pending list hides what the dead have left",
        "the cursor is kept between rounds: all of it is found behind thousands that live"),
    Row(60, "trimming eats what a group still needs",
        "it never does; past limits.topic_len a publish is refused"),
    Row(61, "a group that nobody serves keeps everything",
        "trimming says which group is in the way; an operator removes it, and what it was owed is in a file"),
    Row(62, "a group is created after the first events",
        "it begins with the first of them"),
    Row(63, "many reclaim one entry",
        "one of them may run it"),
    Row(64, "Redis tells no lag, or a wrong one",
        "ours agrees with counting by hand; beyond a bound it says that it does not know"),
    Row(65, "a worker dies while a retry is scheduled or promoted",
        "each is one script: no retry is lost, and ten promoters move each once"),
    Row(66, "all handlers fail at once, and their retries come at once",
        "delays are spread over their whole range and capped; a circuit breaker parks the events of a group and spends "
        "no attempts but those that open it",
        "it is a handler's choice: `breaker=Breaker()`"),
    Row(67, "a worker dies between claim and done",
        "the event runs again: a claim is no done mark"),
    Row(68, "what is known of an event expires before the event comes again",
        "a scheduled retry is remembered beyond its due time; done marks for the whole window",
        "done and ack are one script, so no redelivery meets an expired mark; copies sent after the window run"),
    Row(69, "dead-lettering or replaying breaks off",
        "letter and ack are one script, refused it leaves the event pending; replayed by many, an event comes once; "
        "its letter tells how often it was replayed",
        "replays are an operator's act, so nothing caps them"),
    Row(70, "one event id, two payloads",
        "the second producer gets IdempotencyConflict"),
    Row(71, "retries, kills and rebalancing against the order of a key",
        "ordering=\"key\" holds it exactly"),
    Row(72, "the number of partitions changes",
        "a key's partition is the same in every process and version; another number is refused; rekey moves"),
    Row(73, "a script meets a wrong type half-way",
        "types are looked at before the first write: nothing has changed"),
    Row(74, "a view lies elsewhere than its source",
        "it cannot: rows, checkpoint and marks lie in the slot of the stream and are rolled back with it"),
    Row(75, "a view is rebuilt while events come and workers die",
        "the new generation is exact, and readers go over to it at once, forwards only"),
    Row(76, "many append at one version",
        "one wins, the others are told both versions; no version is skipped"),
    Row(77, "labels from data, and scrapers that hang",
        "series are bounded; one thread renders, and a probe answers meanwhile"),
    Row(78, "aggregates, pending lists and read models of any size",
        "everything is read and deleted page by page",
        "what is asserted is the size of each reply, not the milliseconds"),
)
# fmt: on

ROWS = _WORKERS + _CLIENT + _SERVER + _COPIES + _EVENTS

MISSING: dict[int, str] = {}
"""Rows whose `must` no test shows, and why."""
