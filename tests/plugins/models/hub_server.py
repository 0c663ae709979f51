"""A Hugging Face Hub of our own on 127.0.0.1: what the real client asks for, and its refusals.

Repositories are folders. A few names misbehave as the real Hub does: see REFUSALS.
"""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40

# Repository -> status and headers of every answer about it.
REFUSALS = {
    "tiny/gated": (403, {"X-Error-Code": "GatedRepo"}),
    "tiny/token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "tiny/broken": (500, {}),
}
VERSIONED = ("revision", "resolve", "tree")


class Handler(BaseHTTPRequestHandler):
    """Serves `server.repositories`; every path that was asked for is kept in `server.asked`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """Silence."""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(with_body=True)

    def answer(self, with_body):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "datasets":
            parts = parts[1:]
        api = parts[0] == "api" and parts[1] in ("models", "datasets")
        repository, rest = "/".join((parts[2:] if api else parts)[:2]), parts[4 if api else 2 :]
        self.server.asked.append((self.command, self.path))
        if repository == "tiny/silent":
            self.close_connection = True
        elif repository in REFUSALS:
            self.reply(*REFUSALS[repository], b"{}", with_body)
        elif repository not in self.server.repositories:
            self.reply(404, {"X-Error-Code": "RepoNotFound"}, b"{}", with_body)
        elif rest and rest[0] in VERSIONED and rest[1] not in ("main", self.server.commit):
            self.reply(404, {"X-Error-Code": "RevisionNotFound"}, b"{}", with_body)
        else:
            folder = self.server.repositories[repository]
            (self.describe if api else self.send)(repository, folder, rest, with_body)

    def describe(self, repository, folder, rest, with_body):
        """`/api/models/R/revision/V` and `/api/models/R/tree/V`."""
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if rest and rest[0] in ("tree", "paths-info"):
            body = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": etag(f)}
                for f in files
            ]
        else:
            siblings = [{"rfilename": f.name} for f in files]
            body = {"id": repository, "sha": self.server.commit, "siblings": siblings}
        headers = {"Content-Type": "application/json"}
        self.reply(200, headers, json.dumps(body).encode(), with_body)

    def send(self, repository, folder, rest, with_body):
        """`/R/resolve/V/FILE`."""
        path = folder.joinpath(*rest[2:])
        if not path.is_file():
            self.reply(404, {"X-Error-Code": "EntryNotFound"}, b"", with_body)
            return
        headers = {"ETag": f'"{etag(path)}"', "X-Repo-Commit": self.server.commit}
        self.reply(200, headers, path.read_bytes(), with_body)

    def reply(self, status, headers, body, with_body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def start(repositories: dict[str, Path]) -> ThreadingHTTPServer:
    """Serve `repositories` on a free port until `shutdown()`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repositories, server.asked, server.commit = repositories, [], COMMIT
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
