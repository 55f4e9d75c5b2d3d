"""What one group's events are to be after each step, in plain Python: entries, who holds what, what was promised."""

from __future__ import annotations

from msgspec import Struct

from streamlib.message import entry_order

NEW, COMING, DONE, DEAD = "", "r", "d", "x"


class Entry(Struct):
    """An entry of S or of `again`; its id is "" until the server has named it."""

    event_id: str
    again: bool = False
    attempts: int = 0
    id: str = ""

    @property
    def ref(self) -> str:
        return ("a" if self.again else "") + self.id

    @property
    def order(self) -> tuple[int, int]:
        return entry_order(self.id)


class Held(Struct, frozen=True):
    """An event that a worker has claimed by one of its entries."""

    worker: str
    ref: str
    ran_out: bool = False


class Letter(Struct):
    """A dead letter."""

    event_id: str
    attempts: int
    id: str = ""


class GroupModel:
    """One group of a topic whose stream holds `stream` (shared between its groups)."""

    def __init__(self, stream: list[Entry]) -> None:
        self.stream = stream
        self.unread: list[Entry] = []
        self.again: list[Entry] = []
        self.unread_again: list[Entry] = []
        self.pending: dict[str, tuple[Entry, str]] = {}
        self.states: dict[str, str | Held] = {}
        self.retries: dict[str, int] = {}
        self.letters: list[Letter] = []
        self.died: dict[str, int] = {}

    def state(self, event_id: str) -> str | Held:
        return self.states.get(event_id, NEW)

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, worker: str, count: int) -> list[Entry]:
        """The next entries of both streams, returning ones first: they are this worker's from now on."""
        found = self.unread_again[:count] + self.unread[:count]
        del self.unread_again[:count], self.unread[:count]
        self.pending |= {entry.ref: (entry, worker) for entry in found}
        return found

    def take_over(self, worker: str, count: int) -> list[Entry]:
        """The oldest entries that are pending with anybody."""
        entries = sorted((entry for entry, _ in self.pending.values()), key=lambda entry: entry.order)
        found = [entry for entry in entries if entry.again][:count] + [one for one in entries if not one.again][:count]
        self.pending |= {entry.ref: (entry, worker) for entry in found}
        return found

    # -- claims -------------------------------------------------------------------------------------------------------

    def claim(self, worker: str, entry: Entry, *, suspects: bool) -> tuple[str, int]:
        """The verdict, and for RUN how many workers died on the entry."""
        state = self.state(entry.event_id)
        if isinstance(state, Held) and state.ref == entry.ref:
            if state.worker == worker:
                return "RUN", self.died.get(entry.ref, 0)
            if not state.ran_out:
                return "BUSY", 0
            if not suspects:
                return "SUSPECT", 0
            self.died[entry.ref] = self.died.get(entry.ref, 0) + 1
        elif not self._is_next(entry):
            return "DUPLICATE", 0
        self.states[entry.event_id] = Held(worker, entry.ref)
        return "RUN", self.died.get(entry.ref, 0) if isinstance(state, Held) else 0

    def _is_next(self, entry: Entry) -> bool:
        """Whether the event goes on with this entry, while nobody holds it."""
        state = self.state(entry.event_id)
        return state == NEW or (state == COMING and entry.again and entry in self.again)

    def run_out(self, event_id: str, *, ran_out: bool) -> None:
        """The lease of whoever holds it ends, or begins anew."""
        held = self.state(event_id)
        assert isinstance(held, Held)
        self.states[event_id] = Held(held.worker, held.ref, ran_out)

    def holds(self, worker: str, entry: Entry) -> bool:
        """Whether nobody has taken from this worker what it claimed."""
        state = self.state(entry.event_id)
        return isinstance(state, Held) and (state.worker, state.ref) == (worker, entry.ref)

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def settle(self, worker: str, entry: Entry, kind: str) -> bool:
        """Whether the outcome counts; if so it is recorded."""
        state = self.state(entry.event_id)
        if kind == "ack":
            self._acknowledge(entry)
        elif kind == "return":
            if isinstance(state, Held) and state.ref == entry.ref:
                return False
            goes_on = self._is_next(entry)
            self._acknowledge(entry)
            if goes_on:
                self._comes_again(entry.event_id, entry.attempts)
        elif not self.holds(worker, entry):
            return False
        else:
            self._acknowledge(entry)
            self._end(entry, kind)
        return True

    def _end(self, entry: Entry, kind: str) -> None:
        if kind == "done":
            self.states[entry.event_id] = DONE
        elif kind == "retry":
            self.states[entry.event_id] = COMING
            self.retries[entry.event_id] = entry.attempts + 1
        elif kind == "dead":
            self.states[entry.event_id] = DEAD
            self.letters.append(Letter(entry.event_id, entry.attempts + 1))
        else:
            self._comes_again(entry.event_id, entry.attempts)

    def _acknowledge(self, entry: Entry) -> None:
        self.pending.pop(entry.ref, None)
        self.died.pop(entry.ref, None)
        self.again = [one for one in self.again if one.ref != entry.ref]

    def _comes_again(self, event_id: str, attempts: int) -> None:
        self.states[event_id] = COMING
        entry = Entry(event_id, again=True, attempts=attempts)
        self.again.append(entry)
        self.unread_again.append(entry)

    # -- retries and replays ------------------------------------------------------------------------------------------

    def promote(self, event_ids: list[str]) -> None:
        """These retries are due, and come in this order."""
        for event_id in event_ids:
            self._comes_again(event_id, self.retries.pop(event_id))

    def replay_letter(self, letter: Letter) -> str:
        """What becomes of it."""
        state = self.state(letter.event_id)
        if state == DONE:
            return "DONE"
        if state not in (NEW, DEAD):
            return "BUSY"
        self.letters.remove(letter)
        self._comes_again(letter.event_id, 0)
        return "REPLAYED"

    def replay_range(self) -> dict[str, list[str]]:
        """What becomes of the stream's entries when all of them are to run again: event ids by it."""
        found: dict[str, list[str]] = {}
        seen: set[str] = set()
        for entry in self.stream:
            fate = self._fate(entry, seen)
            found.setdefault(fate, []).append(entry.event_id)
            if fate == "replayed":
                self._comes_again(entry.event_id, 0)
        return found

    def _fate(self, entry: Entry, seen: set[str]) -> str:
        if entry in self.unread:
            return "not_delivered"
        if entry.event_id in seen:
            return "copies"
        seen.add(entry.event_id)
        state = self.state(entry.event_id)
        if isinstance(state, Held) or (state == NEW and entry.ref in self.pending):
            return "busy"
        return {NEW: "replayed", DONE: "replayed", DEAD: "dead", COMING: "waiting"}[state]

    # -- retention ----------------------------------------------------------------------------------------------------

    def needs_from(self) -> tuple[int, int] | None:
        """The first entry of the stream that this group still needs, None if it needs none."""
        needed = [entry.order for entry, _ in self.pending.values() if not entry.again]
        needed += [entry.order for entry in self.unread[:1]]
        return min(needed, default=None)


class Witness:
    """What anybody sees of a group's events from outside, and the promises about it. It knows of no entries."""

    def __init__(self) -> None:
        self.ended: dict[str, str] = {}
        self.running: dict[str, dict[str, bool]] = {}
        """Event -> who runs it -> whether their lease holds."""

    def begins(self, worker: str, event_id: str) -> None:
        assert event_id not in self.ended, f"{event_id} runs again, though it ended: {self.ended[event_id]}"
        runs = self.running.setdefault(event_id, {})
        others = [other for other, holds in runs.items() if holds and other != worker]
        assert not others, f"{event_id} runs with {worker} while the leases of {others} hold"
        runs[worker] = True

    def lease(self, worker: str, event_id: str, *, holds: bool) -> None:
        self.running[event_id][worker] = holds

    def stops(self, worker: str, event_id: str) -> None:
        self.running.get(event_id, {}).pop(worker, None)

    def ends(self, event_id: str, how: str) -> None:
        assert event_id not in self.ended, f"{event_id} ended twice: {self.ended[event_id]}, and now {how}"
        self.ended[event_id] = how

    def replayed(self, event_id: str) -> None:
        self.ended.pop(event_id, None)
