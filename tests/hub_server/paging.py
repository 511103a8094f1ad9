"""Lists in pages, with a `Link` header to the next one."""

import re
from typing import Any

from hub_server.messages import Response
from hub_server.routes import Call


def page(call: Call, entries: list[Any], usual: int) -> Response:
    """Return one page of a list: of `limit` entries, else of as many as the Hub gives."""
    asked = call.request.parameter("limit")
    size = int(asked) if asked and asked.isdigit() else usual
    size = max(1, min(size, call.hub.page_size or size))
    cursor = call.request.parameter("cursor")
    begin = int(cursor) if cursor and cursor.isdigit() else 0
    answer = Response.json(entries[begin : begin + size])
    if begin + size < len(entries):
        rest = re.sub(r"(^|&)cursor=\d+", "", call.request.query).lstrip("&")
        query = "&".join(part for part in (rest, f"cursor={begin + size}") if part)
        url = f"{call.hub.endpoint}{call.request.path}?{query}"
        answer.headers["Link"] = f'<{url}>; rel="next"'
    return answer
