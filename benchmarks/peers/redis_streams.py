"""redis-streams: a consumer that hands over batches of ten, acknowledged one by one."""

import redis
from redis_streams.consumer import Consumer

from benchmarks.peers.common import Clock, Given, order


def main() -> None:
    given = Given()
    left = [given.total]
    clock = Clock(given, left.clear)
    client = redis.Redis.from_url(given.url, decode_responses=True)
    client.xgroup_create("orders", "email", "0", mkstream=True)
    for number in range(given.total):
        client.xadd("orders", {**order(number), "lines": "book,pen,paper"})
    consumer = Consumer(
        redis_conn=client, stream="orders", consumer_group="email", batch_size=10, max_wait_time_ms=30_000
    )
    while left:
        for item in consumer.get_items():
            clock.tick(item.content["order_id"])
            consumer.remove_item_from_consumer_group(item_id=item.msgid)
    clock.tell()


if __name__ == "__main__":
    main()
