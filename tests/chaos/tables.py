"""Tables as text, for a terminal or for docs/."""

from __future__ import annotations

from collections.abc import Sequence


def told(lines: Sequence[Sequence[str]], *, markdown: bool) -> str:
    """A table as text; its first line is the head."""
    if markdown:
        under = ["--:" if lines[0][0] == "row" else "---", *["---"] * (len(lines[0]) - 1)]
        return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], under, *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
