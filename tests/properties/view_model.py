"""What a view is to be after each step, in plain Python: a fold over all that was ever published, up to a position."""

from __future__ import annotations

from msgspec import Struct

from streamlib.event import Event
from streamlib.message import entry_order
from tests.helpers.projecting import Balance, Closed, Moved, Opened

START = "0-0"


class Entry(Struct, frozen=True):
    """What was published: `event` is None where nobody can read it."""

    id: str
    event_id: str
    event: Event | None

    @property
    def order(self) -> tuple[int, int]:
        return entry_order(self.id)


class Folded(Struct, frozen=True):
    """Rows by account, and the entries that became dead letters."""

    rows: dict[str, Balance]
    dead: list[str]


def fold(log: list[Entry], upto: str) -> Folded:
    """Each event once, whatever became of it."""
    rows: dict[str, Balance] = {}
    dead: list[str] = []
    seen: set[str] = set()
    for entry in log:
        if entry.order > entry_order(upto):
            break
        if entry.event_id in seen:
            continue
        event = entry.event
        if isinstance(event, Opened):
            rows[event.account] = Balance(account=event.account, owner=event.owner, limit=event.limit)
        elif isinstance(event, Closed):
            rows.pop(event.account, None)
        elif event is None or (isinstance(event, Moved) and event.account not in rows):
            dead.append(entry.id)
        elif isinstance(event, Moved):
            row = rows[event.account]
            rows[event.account] = Balance(
                account=row.account, owner=row.owner, limit=row.limit, balance=row.balance + event.amount,
                moves=row.moves + 1,
            )  # fmt: skip
        else:
            continue  # of a type that the view does not fold: no copy of it would change anything either
        seen.add(entry.event_id)
    return Folded(rows, dead)


class Owner(Struct, frozen=True):
    """Who owns the partition for one generation, and whether its lease has ended."""

    worker: str = ""
    epoch: int = 0
    ended: bool = True


class ViewModel:
    """The generations of one view; 0 for none."""

    def __init__(self) -> None:
        self.log: list[Entry] = []
        self.trimmed = 0
        self.live, self.kept, self.building = 1, 0, 0
        self.newest = 1
        self.checkpoints = {1: START}
        self.owners = {1: Owner()}

    @property
    def held(self) -> list[Entry]:
        """What the stream still holds."""
        return self.log[self.trimmed :]

    def may_follow(self, generation: int) -> bool:
        """Whether readers may go over to this generation: it is there, and contains all that they have seen."""
        seen = entry_order(self.checkpoints[self.live])
        return generation > 0 and entry_order(self.checkpoints[generation]) >= seen

    @property
    def may_build(self) -> bool:
        """Not while there are two generations, nor from a stream that has lost something."""
        return not (self.kept or self.building or self.trimmed)

    def begin(self) -> None:
        self.building = self.newest = max(self.live, self.kept) + 1
        self.checkpoints[self.building], self.owners[self.building] = START, Owner()

    def switch(self) -> None:
        self.live, self.kept, self.building = self.building, self.live, 0

    def swap(self) -> None:
        self.live, self.kept = self.kept, self.live

    def drop(self, generation: int) -> None:
        del self.checkpoints[generation], self.owners[generation]
        self.kept, self.building = (0, self.building) if generation == self.kept else (self.kept, 0)

    def trim(self, max_len: int) -> None:
        """Of what is beyond the newest `max_len`, all that every generation has behind it goes."""
        needed = min(map(entry_order, self.checkpoints.values()))
        while len(self.held) > max_len and self.held[0].order <= needed:
            self.trimmed += 1
