"""A web server on the loopback for tests: it counts what is asked, and breaks off where it is told to."""

import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Server:
    """A server on the loopback. `cut`: file name -> bytes after which the connection breaks, each time it is asked."""

    url: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    cut: dict[str, int] = field(default_factory=dict)
    ranges: bool = True

    def starts(self, name: str) -> list[int]:
        """Where each request for a file's bytes began."""
        found = [range_ for method, path, range_ in self.asked if method == "GET" and path.endswith(name)]
        return [int(range_.removeprefix("bytes=").split("-")[0]) if range_ else 0 for range_ in found]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the bytes of files, ranges of them where asked, and breaks off where told."""

    server_state: Server
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def give(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        state, name = self.server_state, self.path.partition("?")[0].rpartition("/")[2]
        asked = self.headers.get("Range", "") if state.ranges else ""
        start, stop, status = 0, len(body), 200
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop, status = int(first), int(last) + 1 if last else len(body), 206
        allowed = state.cut.get(name)
        piece = body[start:stop]
        if allowed is not None and self.command == "GET" and start + len(piece) > allowed:
            self.send_response(status)
            self.send_header("Content-Length", str(len(piece)))
            self.end_headers()
            self.wfile.write(piece[: max(0, allowed - start)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        about = {"Content-Range": f"bytes {start}-{stop - 1}/{len(body)}"} if status == 206 else {}
        self.answer(status, piece, about | (headers or {}))

    def do_GET(self) -> None:
        self.server_state.asked.append((self.command, self.path, self.headers.get("Range", "")))
        self.serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def serve(self) -> None:
        raise NotImplementedError

    def log_message(self, *words: object) -> None:
        pass


def running(handler: type[Handler], state: Server) -> Iterator[Server]:
    handler.server_state = state
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *words: None  # type: ignore[method-assign]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:  # also where a test fails: the thread would keep the interpreter from ending
        server.shutdown()
        server.server_close()
        thread.join()
