"""All cases, in the order of the table."""

from collections.abc import Sequence

from benchmarks import loops, projecting, publishing, working
from benchmarks.case import Case

CASES: dict[str, Case] = {
    case.name: case for module in (loops, working, publishing, projecting) for case in module.CASES
}


def chosen(words: Sequence[str]) -> list[Case]:
    """The cases named, or whose names begin with `<word>_`, together with their bases; all of them without words.

    Raises LookupError for a word that means none.
    """
    names: set[str] = set()
    for word in words or CASES:
        found = {word} if word in CASES else {name for name in CASES if name.startswith(f"{word}_")}
        if not found:
            raise LookupError(f"no case {word!r}; there are: {', '.join(CASES)}")
        names |= found
    names |= {CASES[name].base for name in names if CASES[name].base}
    return [case for name, case in CASES.items() if name in names]
