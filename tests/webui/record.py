# SPDX-License-Identifier: MIT
"""A middleware of vLLM (`--middleware record.note`) that notes what is asked, one line of JSON for each request.

Where WAKE_SECONDS is set a wake takes so long, as that of a large model does: on a CPU it takes no time.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any


async def note(request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
    """Append the request and the status of its answer to the file that $REQUESTS names."""
    body = await request.body()
    if request.url.path == "/wake_up":
        await asyncio.sleep(float(os.environ.get("WAKE_SECONDS", "0")))
    answer = await call_next(request)
    line = {
        "call": f"{request.method} {request.url.path}",
        "authorization": request.headers.get("authorization"),
        "task": request.headers.get("x-openwebui-task"),
        "body": json.loads(body) if body else None,
        "status": answer.status_code,
    }
    with open(os.environ["REQUESTS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return answer
