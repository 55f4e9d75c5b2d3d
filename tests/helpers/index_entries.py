"""Where a row has to stand in its indexes: said once more, slowly, to compare with what the worker does."""

from streamlib.read_model import ReadModel
from streamlib.redisio.indexes import Indexes, ViewKeys, exact_text, prefix_member, score


def entries(indexes: Indexes, keys: ViewKeys, row_id: str, row: ReadModel) -> dict[str, tuple[bytes, float]]:
    """Index key -> the row's member there, and its score."""
    member = row_id.encode()
    found = {keys.all_rows: (member, 0.0)}
    for field in indexes.exact:
        found[keys.exact(field, exact_text(getattr(row, field)))] = (member, 0.0)
    for field in indexes.ordered:
        value = getattr(row, field)
        if value is not None:
            found[keys.sorted_by(field)] = (member, score(value))
    for field in indexes.prefix:
        value = getattr(row, field)
        if value is not None:
            found[keys.sorted_by(field)] = (prefix_member(value, row_id), 0.0)
    return found
