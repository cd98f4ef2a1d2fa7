# SPDX-License-Identifier: MIT
"""A Hugging Face Hub of the tests' own, as far as huggingface_hub asks it for models.

with Hub("0.0.0.0") as hub:
    hub.add("org/model", {"config.json": b"{}", "model.safetensors": weights}, token="hf_x", cut=True)
    ...
    assert hub.fetched("org/model") == ["config.json", "model.safetensors"]
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

PART = 65536


@dataclass
class Repository:
    """A model, and how the Hub behaves about it."""

    files: dict[str, bytes]
    # Who may have it: with a token only those who bring it.
    token: str = ""
    gated: bool = False
    # How many bytes of a second each answer has; 0: as many as go.
    speed: float = 0
    # Whether the first answer with a large file breaks off in the middle.
    cut: bool = False
    # What was asked for: method, file and range.
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def commit(self) -> str:
        """The one commit it has."""
        return hashlib.sha1(b"".join(self.files.values()), usedforsecurity=False).hexdigest()


class Hub:
    """The server, in a thread."""

    def __init__(self, address: str) -> None:
        self.repositories: dict[str, Repository] = {}
        hub = self

        class Handler(_Handler):
            repositories = hub.repositories

        self.server = http.server.ThreadingHTTPServer((address, 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, name: str, files: dict[str, bytes], **behaviour: object) -> Repository:
        """Publish a model."""
        self.repositories[name] = Repository(files, **behaviour)  # type: ignore[arg-type]
        return self.repositories[name]

    def fetched(self, name: str) -> list[str]:
        """Return the files whose content was asked for, in order."""
        return [file for method, file, _range in self.repositories[name].asked if method == "GET"]


class _Handler(http.server.BaseHTTPRequestHandler):
    repositories: dict[str, Repository]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = about or file
        repository = self.repositories.get(found[1]) if found else None
        if found is None or repository is None:
            self.refuse(404, "RepoNotFound")
        elif repository.token and self.headers["Authorization"] != f"Bearer {repository.token}":
            gated = repository.gated
            self.refuse(
                403 if gated and self.headers["Authorization"] else 401, "GatedRepo" if gated else "RepoNotFound"
            )
        elif (found[2] or "main") not in ("main", repository.commit):
            self.refuse(404, "RevisionNotFound")
        elif about:
            repository.asked.append(("about", "", ""))
            files = [{"rfilename": name, "size": len(content)} for name, content in repository.files.items()]
            self.answer_json({"id": found[1], "sha": repository.commit, "siblings": files})
        elif found[3] not in repository.files:
            self.refuse(404, "EntryNotFound")
        else:
            self.answer_file(repository, found[3])

    do_HEAD = do_GET

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer_json(self, data: object) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_file(self, repository: Repository, name: str) -> None:
        content = repository.files[name]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        begin = int(wanted[1]) if wanted else 0
        repository.asked.append((self.command, name, self.headers["Range"] or ""))
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.end_headers()
        if self.command == "HEAD":
            return
        end = len(content)
        if repository.cut and end > PART:
            repository.cut, end = False, end // 2
            self.close_connection = True
        for start in range(begin, end, PART):
            part = content[start : min(start + PART, end)]
            self.wfile.write(part)
            if repository.speed:
                time.sleep(len(part) / repository.speed)

    def log_message(self, *_arguments: object) -> None:
        pass
