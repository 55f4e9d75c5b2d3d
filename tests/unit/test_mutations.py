"""The seeded mistakes still fit the code: one that has moved must not be taken for one that is caught."""

from pathlib import Path

import pytest

from tests.chaos.mutations import MUTATIONS, Mutation, NotThere, Verdict, mutated

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name)
def test_a_mutation_changes_one_place_and_names_a_test_that_exists(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text()
    assert mutated(mutation, text) != text
    file, _, test = mutation.test.partition("::")
    assert f"def {test}(" in (ROOT / file).read_text()


def test_a_text_that_is_gone_or_stands_twice_is_refused() -> None:
    mutation = Mutation("name", "mistake", "file", "right", "wrong", "test")
    for text in ("", "right and right"):
        with pytest.raises(NotThere, match="name: 'right' stands"):
            mutated(mutation, text)


@pytest.mark.parametrize("exit_code", [0, 2, 4, 5])
def test_only_a_failing_test_has_caught_anything(exit_code: int) -> None:
    mutation = MUTATIONS[0]
    assert not Verdict(mutation, exit_code, 1.0).is_caught
    assert Verdict(mutation, 1, 1.0).is_caught
