"""The table of all cases, for people."""

from collections.abc import Sequence

from streamlib.bench.figures import Line, number


def text(table: Sequence[Line]) -> str:
    """A line for each figure of each case."""
    shown = [f"{'case':<28}{'figure':<24}{'median':>12}{'least':>12}{'most':>12}   in relation to its base"]
    case = ""
    for line in table:
        name, case = ("" if line.case == case else line.case), line.case
        spread = "".join(f"{number(value):>12}" for value in (line.value.median, line.value.least, line.value.most))
        shown.append(f"{name:<28}{line.figure:<24}{spread}{_relation(line)}")
    return "\n".join(shown)


def _relation(line: Line) -> str:
    if line.ratio is None:
        return ""
    return f"   {line.ratio.median:.2f} ({line.ratio.least:.2f} to {line.ratio.most:.2f}) of {line.base}"
