"""As much of W&B's server as a run asks for."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import attrs

VIEWER = {
    "id": "1",
    "username": "someone",
    "entity": "someone",
    "email": "",
    "flags": "{}",
    "teams": {"edges": []},
}
PROJECT = {"id": "2", "name": "tiny", "entity": {"id": "1", "name": "someone"}}
NEVER_LOGGED_TO = {
    "summaryMetrics": "{}",
    "logLineCount": 0,
    "historyLineCount": 0,
    "eventsLineCount": 0,
    "historyTail": "[]",
    "eventsTail": "[]",
    "config": "{}",
    "tags": [],
    "notes": "",
    "wandbConfig": '{"t": 1}',
}


@attrs.define
class Server:
    """Knows one key.

    Attributes:
        key: The key.
        url: Where it listens.
        keys: The key of every request that came with one.
        received: The body of every request.
        upserts: What it was told about runs.
        inits: The ids of runs whose earlier state was asked for, and whether there was one.
    """

    key: str
    url: str = ""
    keys: set[str] = attrs.field(factory=set)
    received: list[str] = attrs.field(factory=list)
    upserts: list[dict] = attrs.field(factory=list)
    inits: list[tuple[str, bool]] = attrs.field(factory=list)

    def answer(self, key: str, body: str) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        self.received.append(body)
        if not body.startswith('{"query"'):
            return 200, {}
        self.keys.add(key)
        if key != self.key:
            return 401, {"errors": [{"message": "user is not logged in"}]}
        asked = json.loads(body)
        reply = getattr(self, asked["operationName"], None)
        return 200, {"data": reply(asked.get("variables")) if reply else {}}

    def Viewer(self, _: Any) -> dict:
        return {"viewer": VIEWER, "serverInfo": {"features": []}}

    def RunResumeStatus(self, variables: dict) -> dict:
        name = variables["name"]
        known = any(each["name"] == name for each in self.upserts)
        self.inits.append((name, known))
        bucket = {"id": "3", "name": name, "displayName": name, **NEVER_LOGGED_TO}
        return {"model": {**PROJECT, "bucket": bucket if known else None}}

    def UpsertBucket(self, variables: dict) -> dict:
        self.upserts.append(variables)
        bucket = {
            "id": "3",
            "name": variables["name"],
            "displayName": variables["displayName"] or "a-nice-name",
            "description": "",
            "config": "{}",
            "project": PROJECT,
            "historyLineCount": 0,
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def CreateRunFiles(self, variables: dict) -> dict:
        files = [{"name": x, "uploadUrl": f"{self.url}/upload"} for x in variables["files"]]
        return {"createRunFiles": {"runID": "3", "uploadHeaders": [], "files": files}}


@contextmanager
def serving(key: str) -> Iterator[Server]:
    """A Server on 127.0.0.1, for as long as the context lasts."""
    server = Server(key)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            header = self.headers.get("Authorization", "").removeprefix("Basic ")
            key = base64.b64decode(header).decode().partition(":")[2]
            status, answer = server.answer(key, body.decode(errors="replace"))
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_PUT = do_POST

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        Thread(target=http.serve_forever, daemon=True).start()
        yield server
        http.shutdown()
