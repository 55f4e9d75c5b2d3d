"""What a handler's signature declares, and what is refused when the app is imported."""

from __future__ import annotations

import functools
from typing import Any, Optional, Union

import pytest

from streamlib import App, BatchContext, Context, Event, Retry, Settings
from streamlib.errors import DeclarationError
from streamlib.worker.handlers import read_handler
from tests.unit import handlers_of_another_module


class Placed(Event):
    order_id: str


class Shipped(Event):
    order_id: str


class Strange(Event):
    order_id: str


def an_app() -> tuple[App, Any]:
    app = App("shop", settings=Settings())
    return app, app.topic("orders", Placed, Shipped)


# -- what is understood -------------------------------------------------------------------------------------------


async def one(event: Placed) -> None: ...


async def with_context(event: Placed, ctx: Context) -> None: ...


async def either(event: Placed | Shipped, ctx: Context) -> None: ...


async def old_union(event: Union[Placed, Shipped]) -> None: ...  # noqa: UP007 - both ways of writing it are understood


def plain(event: Placed, ctx: Context) -> None: ...


async def batch(events: list[Placed], ctx: BatchContext) -> None: ...


def batch_of_either(events: list[Placed | Shipped]) -> None: ...


async def without_return(event: Placed):  # type: ignore[no-untyped-def]
    pass


@pytest.mark.parametrize(
    ("function", "events", "is_batch", "is_async", "takes_context"),
    [
        (one, {Placed}, False, True, False),
        (with_context, {Placed}, False, True, True),
        (either, {Placed, Shipped}, False, True, True),
        (old_union, {Placed, Shipped}, False, True, False),
        (plain, {Placed}, False, False, True),
        (batch, {Placed}, True, True, True),
        (batch_of_either, {Placed, Shipped}, True, False, False),
        (without_return, {Placed}, False, True, False),
    ],
)
def test_annotations_say_what_a_handler_gets(
    function: Any, events: set[type], is_batch: bool, is_async: bool, takes_context: bool
) -> None:
    spec = read_handler(function)
    assert set(spec.events) == events
    assert (spec.is_batch, spec.is_async, spec.takes_context) == (is_batch, is_async, takes_context)


def test_annotations_that_are_no_strings_are_understood_too() -> None:
    assert read_handler(handlers_of_another_module.evaluated).events == (handlers_of_another_module.Arrived,)


def test_a_handler_stays_the_function_that_it_was() -> None:
    app, orders = an_app()
    assert app.handler(orders, group="email")(one) is one
    assert app.groups["orders", "email"].type_names == {"Placed"}


def test_a_bound_method_is_a_handler() -> None:
    class Mailer:
        async def mail(self, event: Placed, ctx: Context) -> None: ...

    assert read_handler(Mailer().mail).events == (Placed,)


def test_a_group_collects_handlers_of_different_types_even_of_one_name() -> None:
    app, orders = an_app()

    def declare(cls: type[Event]) -> None:
        async def handle(event: Any) -> None: ...

        handle.__annotations__["event"] = cls
        app.handler(orders, group="email")(handle)

    declare(Placed)
    declare(Shipped)
    assert app.groups["orders", "email"].type_names == {"Placed", "Shipped"}


# -- what is refused ----------------------------------------------------------------------------------------------


async def bare(event) -> None: ...  # type: ignore[no-untyped-def]


async def no_event(event: int) -> None: ...


async def half_a_union(event: Placed | int) -> None: ...


async def maybe(event: Optional[Placed]) -> None: ...  # noqa: UP045 - the old way of writing it


async def list_of_what(events: list) -> None: ...  # type: ignore[type-arg]


async def list_of_texts(events: list[str]) -> None: ...


async def a_tuple(events: tuple[Placed, ...]) -> None: ...


async def the_class_itself(event: type[Placed]) -> None: ...


async def nothing() -> None: ...


async def three(event: Placed, ctx: Context, more: int) -> None: ...


async def many(event: Placed, *rest: Any) -> None: ...


async def keywords(event: Placed, **rest: Any) -> None: ...


async def keyword_only(event: Placed, *, ctx: Context) -> None: ...


async def returns(event: Placed) -> int:
    return 1


async def missing(event: NotThere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


async def missing_in_module(event: handlers_of_another_module.NotThere) -> None: ...  # type: ignore[name-defined]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (bare, r"annotate 'event' with the event class it handles"),
        (no_event, r"is no event class, union of them or list of them"),
        (half_a_union, r"is no event class, union of them or list of them"),
        (maybe, r"is no event class"),
        (list_of_what, r"is no event class"),
        (list_of_texts, r"is no event class"),
        (a_tuple, r"is no event class"),
        (the_class_itself, r"is no event class"),
        (nothing, r"must take \(event\) or \(event, ctx\) by position, not \(\)"),
        (three, r"by position, not \(event: .*, more"),
        (many, r"must take \(event\) or \(event, ctx\)"),
        (keywords, r"must take \(event\) or \(event, ctx\)"),
        (keyword_only, r"must take \(event\) or \(event, ctx\)"),
        (returns, r"must return None"),
        (missing, r"'NotThere' is not found in module .*test_handlers; define event classes at module level"),
        (missing_in_module, r"NotThere"),
    ],
)
def test_a_wrong_signature_names_the_handler_and_the_way_out(function: Any, says: str) -> None:
    with pytest.raises(DeclarationError, match=says) as caught:
        read_handler(function)
    assert function.__qualname__ in str(caught.value)


def test_a_class_local_to_a_function_is_a_clear_error() -> None:
    class Local(Event):
        order_id: str

    async def handle(event: Local) -> None: ...

    with pytest.raises(
        DeclarationError, match=r"'Local' is not found in module .*define event classes at module level"
    ):
        read_handler(handle)


@pytest.mark.parametrize("thing", [functools.partial(one), 7, "text"])
def test_what_is_no_function_is_a_clear_error(thing: Any) -> None:
    with pytest.raises(DeclarationError, match="decorate a function"):
        read_handler(thing)


def test_two_handlers_for_one_type_in_one_group_are_refused() -> None:
    app, orders = an_app()
    app.handler(orders, group="email")(one)
    with pytest.raises(DeclarationError, match=r"'email' of topic 'orders': Placed is handled by one and by either"):
        app.handler(orders, group="email")(either)
    app.handler(orders, group="sms")(either)
    assert app.groups["orders", "email"].type_names == {"Placed"}, "the refused one left nothing behind"


def test_an_event_of_another_topic_is_refused() -> None:
    app, orders = an_app()

    async def handle(event: Strange) -> None: ...

    with pytest.raises(DeclarationError, match="topic 'orders' does not declare Strange"):
        app.handler(orders, group="email")(handle)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"group": "e mail"}, "group 'e mail'"),
        ({"group": "email", "timeout": 0}, "not above 0 seconds"),
        ({"group": "email", "concurrency": 0}, "not 1 to 10000"),
        ({"group": "email", "rerun": "sometimes"}, "choose 'ok' or 'never'"),
        ({"group": "email", "ordering": "partition"}, "choose 'none' or 'key'"),
    ],
)
def test_wrong_options_name_what_is_allowed(options: dict[str, Any], says: str) -> None:
    app, orders = an_app()
    with pytest.raises(DeclarationError, match=says):
        app.handler(orders, **options)(one)
    assert app.groups == {}


def test_a_group_cannot_be_a_projection_too() -> None:
    app, orders = an_app()
    app.handler(orders, group="email", retry=Retry(max_attempts=1))(one)
    with pytest.raises(DeclarationError, match="both a handler group and a projection"):
        app.projection("email", orders, handlers_of_another_module.Row, key="order_id")
