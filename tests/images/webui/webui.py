# SPDX-License-Identifier: MIT
"""A stand-in for Open WebUI: it has a health check, knows the models of its servers, and keeps data.

GET /health answers at once; GET /api/models asks every server of OPENAI_API_BASE_URLS, with its key of
OPENAI_API_KEYS, for its models, and leaves out those that do not answer, as Open WebUI does. Where that would ask
api.openai.com, for an address that is empty, this one does not start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PORT = int(os.environ.get("PORT") or 8080)
SECONDS = int(os.environ.get("AIOHTTP_CLIENT_TIMEOUT_MODEL_LIST") or 10)
DATA = Path("/app/backend/data")


def models() -> list[dict[str, Any]]:
    """The models of every server that answers, each with the number of its server."""
    if os.environ.get("ENABLE_OPENAI_API") != "True":
        return []
    urls = os.environ["OPENAI_API_BASE_URLS"].split(";")
    keys = os.environ.get("OPENAI_API_KEYS", "").split(";")
    found = []
    for number, url in enumerate(urls):
        key = keys[number] if number < len(keys) else ""
        request = urllib.request.Request(url.rstrip("/") + "/models", headers={"Authorization": "Bearer " + key})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                found += [{**model, "urlIdx": number} for model in json.load(response)["data"]]
        except (OSError, ValueError, KeyError) as exc:
            print("%s: %s" % (url, exc), flush=True)
    return found


class Handler(BaseHTTPRequestHandler):
    """The two routes."""

    def do_GET(self) -> None:
        """Answer with JSON."""
        path = self.path.partition("?")[0]
        answers: dict[str, Any] = {"/health": lambda: {"status": True}, "/api/models": lambda: {"data": models()}}
        body = json.dumps(answers[path]() if path in answers else {"detail": "Not Found"}).encode()
        self.send_response(200 if path in answers else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve, or check the server of this container."""
    if sys.argv[1:] == ["check"]:
        with urllib.request.urlopen("http://127.0.0.1:%d/health" % PORT, timeout=4):
            return
    if os.environ.get("ENABLE_OPENAI_API") == "True" and not all(os.environ["OPENAI_API_BASE_URLS"].split(";")):
        sys.exit("an address is empty")
    # The first process of a container does not heed a signal that it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    DATA.mkdir(parents=True, exist_ok=True)
    with (DATA / "webui.db").open("a", encoding="utf-8") as database:
        database.write("started\n")
    ThreadingHTTPServer(("", PORT), Handler).serve_forever()


if __name__ == "__main__":
    main()
