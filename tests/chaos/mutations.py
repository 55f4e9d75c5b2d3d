"""Seeds known mistakes into a copy of the project, one at a time, and shows that a test notices each.

    python -m tests.chaos.mutations [NAME...] [--list] [--json]

Each mutation is what somebody could plausibly write: a fence that is not asked, an ack before the work. It is caught
when the test named beside it fails with it and passes without it. Ends with code 1 when one is not caught.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

ROOT = Path(__file__).parents[2]
LUA = "streamlib/redisio/lua"
TEST_S = 120
FAILED = 1
"""pytest's exit code when a test failed; other codes are no judgement."""


class Mutation(Struct, frozen=True):
    """In `file` the text `right`, which stands there once, becomes `wrong`; `test` notices."""

    name: str
    mistake: str
    file: str
    right: str
    wrong: str
    test: str


class Verdict(Struct, frozen=True):
    """`exit_code` is pytest's with the mutation in place."""

    mutation: Mutation
    exit_code: int
    seconds: float

    @property
    def is_caught(self) -> bool:
        return self.exit_code == FAILED


class NotThere(Exception):
    """The text to be changed does not stand in its file exactly once: the mutation has to follow the code."""


MUTATIONS = (
    Mutation(
        "settle-without-fence",
        "an owner settles though another took its partition",
        f"{LUA}/settle.lua",
        "if owner[1] ~= worker or owner[2] ~= epoch then",
        "if false then",
        "tests/integration/test_settle_ordered.py::test_after_another_took_the_partition_nothing_is_written",
    ),
    Mutation(
        "stale-epoch-accepted",
        "an owner of an earlier epoch settles",
        f"{LUA}/settle.lua",
        "if owner[1] ~= worker or owner[2] ~= epoch then",
        "if owner[1] ~= worker then",
        "tests/integration/test_settle_ordered.py::test_an_earlier_epoch_of_the_same_worker_writes_nothing",
    ),
    Mutation(
        "settle-of-a-lost-lease",
        "whoever ran an entry settles it, though another worker has claimed it since",
        f"{LUA}/settle.lua",
        "claimed = holder == me and all_but_ref or claimed",
        "claimed = all_but_ref or claimed",
        "tests/integration/test_settle.py::test_in_one_batch_the_lost_stay_and_the_held_are_settled",
    ),
    Mutation(
        "settle-in-two-steps",
        "the entry is acknowledged before the script that records its outcome",
        "streamlib/redisio/settler.py",
        "    async def ask(told: Members) -> Any:\n",
        "    for one in settlements:\n"
        '        await redis.execute("XACK", keys.stream, group, one.delivery.entry_id)\n\n'
        "    async def ask(told: Members) -> Any:\n",
        "tests/integration/test_settle.py::test_a_key_of_another_type_is_named_and_changes_nothing",
    ),
    Mutation(
        "claim-without-lease",
        "an entry that another worker holds is taken over at once",
        f"{LUA}/claim.lua",
        "elseif tonumber(ends) > now and",
        "elseif false and",
        "tests/integration/test_claims.py::test_an_entry_that_another_worker_holds_is_busy_until_its_deadline",
    ),
    Mutation(
        "done-mark-before-the-work",
        "the claim writes that the event is done",
        f"{LUA}/claim.lua",
        'seen[key], all[2 * i - 1], all[2 * i] = true, key, claimed .. ARGV[BEFORE_REFS + i]',
        'seen[key], all[2 * i - 1], all[2 * i] = true, key, "d"',
        "tests/chaos/test_worker_faults.py::test_kill_9_of_one_of_two_workers_loses_nothing",
    ),
    Mutation(
        "done-marks-ignored",
        "a copy of an event that has ended runs again",
        f"{LUA}/claim.lua",
        '    elseif string.sub(state, 1, 1) ~= "c" then\n        return DUPLICATE, 0',
        '    elseif string.sub(state, 1, 1) ~= "c" then\n        return RUN, 0',
        "tests/integration/test_claims.py::test_an_event_that_has_ended_is_a_duplicate_from_either_stream",
    ),
    Mutation(
        "crashes-not-counted",
        "an event that kills its worker is run for ever",
        f"{LUA}/claim.lua",
        'return RUN, redis.call("HINCRBY", SUSPECT, ref, 1)',
        "return RUN, 0",
        "tests/chaos/test_worker_faults.py::test_an_event_that_kills_its_worker_ends_alone_in_the_dead_letters",
    ),
    Mutation(
        "ack-before-work",
        "entries are read without a pending list",
        "streamlib/redisio/reader.py",
        '"XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", count, *block,',
        '"XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", count, *block, "NOACK",',
        "tests/chaos/test_worker_faults.py::test_kill_9_of_one_of_two_workers_loses_nothing",
    ),
    Mutation(
        "trim-by-length-alone",
        "MAXLEN drops what a group still needs",
        f"{LUA}/trim.lua",
        "if less(safe, cut) then\n    if",
        "if false then\n    if",
        "tests/integration/test_retention.py::test_the_oldest_pending_entry_of_any_group_stays",
    ),
    Mutation(
        "renewal-without-owner-check",
        "a worker that was away takes back what another runs now",
        f"{LUA}/renew.lua",
        'if held == ref and string.match(holder, "^[^@]*") == worker then',
        "if held == ref then",
        "tests/integration/test_renew_promote.py::test_renewal_never_takes_a_lost_entry_again",
    ),
    Mutation(
        "renewal-counts-as-delivery",
        "renewing makes an entry look delivered again and again",
        f"{LUA}/renew.lua",
        '    claim[#claim + 1] = "JUSTID"\n',
        "",
        "tests/integration/test_renew_promote.py::test_twenty_renewals_leave_the_delivery_counter_alone",
    ),
    Mutation(
        "reclaim-cursor-from-zero",
        "each look at a pending list starts at its head and never sees what lies behind a page of living claims",
        "streamlib/worker/reclaimer.py",
        "cursor=self._cursors[place],",
        'cursor="0-0",',
        "tests/integration/test_reclaimer.py::test_the_dead_are_found_behind_many_living",
    ),
    Mutation(
        "dead-letter-after-ack",
        "what fails for good is acknowledged, and its letter is left to later",
        f"{LUA}/settle.lua",
        'redis.call("XADD", DEAD, "*", unpack(ARGV, first, last))',
        "local _ = last",
        "tests/integration/test_settle.py::test_a_dead_letter_keeps_the_fields_and_says_why",
    ),
    Mutation(
        "resent-outcome-written-twice",
        "a settle whose reply was lost counts as a lost lease, or is done once more",
        f"{LUA}/settle.lua",
        "elseif resent and (state == WRITES[kind] or (WRITES[kind] == \"r\" and held ~= ref)) then\n"
        '            return "settled"',
        "elseif resent and (state == WRITES[kind] or (WRITES[kind] == \"r\" and held ~= ref)) then\n"
        '            return "write"',
        "tests/integration/test_settle.py::test_sent_twice_an_outcome_counts_and_is_written_once",
    ),
    Mutation(
        "retry-too-early",
        "retries come back before they are due",
        f"{LUA}/promote.lua",
        'redis.call("ZRANGEBYSCORE", KEYS[1], "-inf", now, "LIMIT", 0, limit)',
        'redis.call("ZRANGEBYSCORE", KEYS[1], "-inf", "+inf", "LIMIT", 0, limit)',
        "tests/integration/test_renew_promote.py::test_what_is_not_due_stays_and_the_wait_is_told",
    ),
    Mutation(
        "retry-promoted-twice",
        "a retry stays scheduled after it has come back",
        f"{LUA}/promote.lua",
        '    redis.call("ZREM", KEYS[1], event_id)\n    redis.call("HDEL", KEYS[2], event_id)\n',
        "",
        "tests/integration/test_renew_promote.py::test_ten_promoters_at_once_promote_each_retry_once",
    ),
    Mutation(
        "publish-sent-twice-adds-twice",
        "a batch whose reply was lost is added once more",
        f"{LUA}/publish.lua",
        "if tonumber(last_sequence) == sequence then",
        "if false then",
        "tests/integration/test_publish_once.py::test_a_lost_reply_is_sent_again_and_nothing_doubles",
    ),
    Mutation(
        "overtaken-batch-accepted",
        "a batch that arrives after its successor is added",
        f"{LUA}/publish.lua",
        "elseif tonumber(last_sequence) > sequence then",
        "elseif false then",
        "tests/integration/test_publish_once.py::test_an_overtaken_batch_that_arrives_late_is_refused",
    ),
    Mutation(
        "append-without-version",
        "an append at the wrong version is stored",
        f"{LUA}/append.lua",
        "if actual ~= expected then",
        "if false then",
        "tests/integration/test_event_store.py::test_the_wrong_version_is_told_with_both_and_writes_nothing",
    ),
    Mutation(
        "copies-in-other-commits-forgotten",
        "a rebuild folds a copy of what an earlier commit has folded",
        "streamlib/worker/folding.py",
        "            or (seen is not None and seen.has_any(different))\n",
        "",
        "tests/integration/test_rebuild.py::test_a_copy_that_comes_alone_is_told_however_many_commits_after_its_event",
    ),
    Mutation(
        "folded-upon-what-was-not-written",
        "a batch is committed though the one that it was folded upon was taken back",
        "streamlib/worker/applying.py",
        "        if drops != self._drops:\n            return await self.apply(prepared)\n",
        "",
        "tests/integration/test_projection_backlog.py"
        "::test_what_was_folded_upon_a_commit_that_could_not_be_written_is_folded_anew",
    ),
    Mutation(
        "commit-without-fence",
        "a frozen owner of a view writes rows when it wakes",
        f"{LUA}/commit.lua",
        "if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then",
        "if false then",
        "tests/integration/test_projection_faults.py::test_a_commit_sent_twice_writes_once",
    ),
    Mutation(
        "commit-from-anywhere",
        "rows are written whatever the position of the view",
        f"{LUA}/commit.lua",
        "elseif checkpoint ~= old then",
        "elseif false then",
        "tests/integration/test_projection_faults.py::test_a_commit_sent_twice_writes_once",
    ),
    Mutation(
        "rebuild-begins-over-the-live-view",
        "a rebuild begins a generation that another has built and put live meanwhile",
        "streamlib/redisio/generations.py",
        '            "": (str(live), str(live)),\n            _KEPT',
        "            _KEPT",
        "tests/integration/test_rebuild.py"
        "::test_the_beginning_of_a_rebuild_that_arrives_after_another_has_gone_live_is_refused",
    ),
    Mutation(
        "epoch-repeats",
        "the next owner of a partition has the epoch of the last",
        f"{LUA}/own.lua",
        "epoch = math.max(epoch + 1, now)",
        "epoch = math.max(epoch, 1)",
        "tests/integration/test_owner.py::test_a_lease_that_ended_goes_to_the_next_with_a_higher_epoch",
    ),
    Mutation(
        "consumer-removed-with-its-entries",
        "a dead worker is tidied away together with what it had not finished",
        f"{LUA}/remove_consumer.lua",
        "if chosen and info.pending == 0 then",
        "if chosen then",
        "tests/integration/test_renew_promote.py::test_a_consumer_with_something_pending_is_not_removed",
    ),
    Mutation(
        "permits-of-others-forgotten",
        "each worker counts its own runs only",
        f"{LUA}/admit.lua",
        "math.max(at_once - held - busy - ahead, 0)",
        "math.max(at_once - busy - ahead, 0)",
        "tests/integration/test_admit.py::test_the_sum_never_exceeds_the_limit_whatever_they_ask",
    ),
    Mutation(
        "an-outage-spends-attempts",
        "what fails while the circuit breaker is open spends its attempt",
        "streamlib/worker/circuit.py",
        "return not patient",
        "return True",
        "tests/integration/test_breaker.py::test_an_outage_spends_no_attempts_but_those_that_open_the_breaker",
    ),
    Mutation(
        "probes-without-bound",
        "a half-open circuit breaker lets all events start",
        "streamlib/worker/admission.py",
        "return self._circuit.probes(probes)",
        "return UNLIMITED",
        "tests/integration/test_breaker.py::test_while_it_is_open_one_event_at_a_time_is_tried",
    ),
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mutations", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", nargs="*", help="mutations of these names; all when none is given")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if unknown := set(given.name) - {one.name for one in MUTATIONS}:
        parser.error(f"no mutation {min(unknown)!r}; --list says what there is")
    chosen = [one for one in MUTATIONS if not given.name or one.name in given.name]
    if given.list:
        print("\n".join(f"{one.name:<34}{one.mistake}" for one in chosen))
        return 0
    verdicts = []
    with copied() as copy:
        if run([one.test for one in chosen], copy):
            print("the tests fail without any mutation", file=sys.stderr)
            return 1
        for one in chosen:
            verdicts.append(judge(one, copy))
            print(told(verdicts[-1]), file=sys.stderr if given.json else sys.stdout, flush=True)
    caught = sum(one.is_caught for one in verdicts)
    print(msgspec.json.encode(verdicts).decode() if given.json else f"{caught} of {len(verdicts)} caught")
    return int(caught < len(verdicts))


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the project that may be changed."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info"))
        yield copy


def judge(mutation: Mutation, copy: Path) -> Verdict:
    """What the test says while the mutation is in place."""
    file = copy / mutation.file
    text = file.read_text()
    file.write_text(mutated(mutation, text))
    started_s = time.monotonic()
    try:
        return Verdict(mutation, run([mutation.test], copy), time.monotonic() - started_s)
    finally:
        file.write_text(text)


def mutated(mutation: Mutation, text: str) -> str:
    """Raises NotThere."""
    if text.count(mutation.right) != 1:
        raise NotThere(
            f"{mutation.name}: {mutation.right!r} stands {text.count(mutation.right)} times in {mutation.file}"
        )
    return text.replace(mutation.right, mutation.wrong)


def run(tests: Sequence[str], copy: Path) -> int:
    """pytest's exit code; what hangs with a mutation in place is stopped by each test's own timeout."""
    words = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "-o", f"timeout={TEST_S}", *dict.fromkeys(tests)]
    environ = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=copy, env=environ, stdout=subprocess.DEVNULL)
    return done.returncode


def told(verdict: Verdict) -> str:
    word = {FAILED: "caught", 0: "NOT CAUGHT"}.get(verdict.exit_code, f"pytest ended with {verdict.exit_code}")
    return f"{verdict.mutation.name:<34}{word:<14}{verdict.seconds:5.0f} s  {verdict.mutation.test}"


if __name__ == "__main__":
    sys.exit(main())
