"""The shop of `workers/shop`, opened for a test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streamlib import App
from tests.helpers.delivering import settings
from workers.shop import app


@asynccontextmanager
async def open_shop(url: str) -> AsyncIterator[App]:
    """The shop's app, open, with settings for quick tests."""
    app.configure(settings(url))
    async with app:
        yield app
