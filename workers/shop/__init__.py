"""A shop in five modules, one pattern of event-driven software each: `streamlib run workers.shop:app` starts them all.

Importing a module declares what it holds. Whoever runs the app imports this package, so that nothing is left out.
"""

from workers.shop import accounts, idempotency, notifications, orders, products
from workers.shop.app import app

__all__ = ["accounts", "app", "idempotency", "notifications", "orders", "products"]
