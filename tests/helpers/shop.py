"""The shop of `workers/shop`, opened for a test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis

from streamlib import App
from tests.helpers.delivering import settings
from workers.shop import app


@asynccontextmanager
async def open_shop(url: str) -> AsyncIterator[App]:
    """The shop's app, open, with settings for quick tests."""
    app.configure(settings(url))
    async with app:
        yield app


def everything(client: redis.Redis) -> dict[bytes, Any]:
    """Every key with its serialized value: equal before and after means that nothing was written."""
    keys: Any = client.keys()
    return {key: client.dump(key) for key in keys}
