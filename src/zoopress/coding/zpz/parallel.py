"""Work that threads share, whose results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def map_in_order(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], threads: int
) -> Iterator[tuple[ItemT, ResultT]]:
    """Yield each item and what `function` makes of it, in order.

    No more than two items for each thread are taken ahead of what was yielded. The first item is
    worked on at once: if it is the only one, no thread is started. An iterator that is closed,
    or fails, returns once what is under way has ended.
    """
    remaining = iter(items)
    for item in remaining:
        yield item, function(item)
        break
    if threads <= 1:
        for item in remaining:
            yield item, function(item)
        return
    waiting: deque[tuple[ItemT, Future[ResultT]]] = deque()
    pool: ThreadPoolExecutor | None = None
    try:
        for item in remaining:
            pool = pool or ThreadPoolExecutor(threads, "zoopress-coder")
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()
        if pool is not None:
            pool.shutdown()
