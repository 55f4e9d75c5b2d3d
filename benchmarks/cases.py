"""All cases, in the order of the table."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from benchmarks import bulk, loops, pacing, projecting, publishing, whole, working
from benchmarks.case import Case

CASES: dict[str, Case] = {
    case.name: case for module in (loops, working, publishing, projecting, pacing, bulk, whole) for case in module.CASES
}


def chosen(words: Sequence[str], others: Sequence[Case] = ()) -> list[Case]:
    """The cases named, or whose names begin with `<word>_`, together with their bases. `others` are those of peers.

    Raises LookupError for a word that means none.
    """
    known = CASES | {case.name: case for case in others}
    names: set[str] = set()
    for word in words:
        found = {word} if word in known else {name for name in known if name.startswith(f"{word}_")}
        if not found:
            raise LookupError(f"no case {word!r}; there are: {', '.join(known)}")
        names |= found
    names |= {known[name].base for name in names if known[name].base}
    return [case for name, case in known.items() if name in names]


def installed(case: Case) -> bool:
    """Whether what the case needs is here."""
    return not case.needs or importlib.util.find_spec(case.needs) is not None


def beside(cases: Sequence[Case], checkout: Path) -> list[Case]:
    """The cases, those of streamlib with a twin in another checkout of it, whose base is the case here."""
    found = []
    for case in cases:
        found.append(case)
        if not case.name.startswith(("raw", "loop", "peer")):
            found.append(replace(case, name=f"{case.name}@there", base=case.name, checkout=str(checkout)))
    return found
