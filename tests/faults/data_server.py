"""A file server on 127.0.0.1 that can misbehave as the servers of the real world do."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves `content` {path: bytes}; `honours_range` and `cut_after` (bytes, per reply) can be changed at any time."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.honours_range = True
        self.ignores_start = False  # answers 206, but from the beginning
        self.cut_after: int | None = None
        self.cuts_left = 10**6
        self.asked: list[tuple[str, str | None]] = []  # path and Range header of every request
        self.url = ""

    def reply(self, handler: BaseHTTPRequestHandler) -> None:
        path, wanted = handler.path.lstrip("/"), handler.headers.get("Range")
        self.asked.append((path, wanted))
        if path not in self.content:
            handler.send_error(404)
            return
        body, start = self.content[path], 0
        if wanted and self.honours_range:
            start = 0 if self.ignores_start else int(re.fullmatch(r"bytes=(\d+)-", wanted).group(1))
            if start >= len(body):
                handler.send_error(416)
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        self.send(handler, body[start:])

    def send(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if self.cut_after is not None and self.cuts_left > 0 and len(body) > self.cut_after:
            self.cuts_left -= 1
            body = body[: self.cut_after]
            handler.close_connection = True
        handler.wfile.write(body)


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """A server in a thread, stopped at the end."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.reply(self)

        def log_message(self, *args: object) -> None:
            """Stay quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
