"""Answers of other services are bounded in bytes and in total time."""

import asyncio
import gzip
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fleet_forecast.sources.bounded_http import BoundedClient, ResponseError, ResponseLimits, ResponseTooLargeError

LIMITS = ResponseLimits(max_bytes=1_000, seconds=0.5)
CUT = ResponseLimits(max_bytes=1_000, seconds=0.5, needs_content=False)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        name = self.path.strip("/")
        try:
            getattr(self, "answer_" + name)()
        except OSError:
            self.close_connection = True

    def answer(self, headers, content=b""):
        self.send_response(200)
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(content)

    def answer_short(self):
        content = self.headers["accept-encoding"].encode()
        self.answer({"content-length": len(content)}, content)

    def answer_large(self):
        self.answer({"content-length": 10**7}, b" " * 10**7)

    def answer_compressed(self):
        bomb = gzip.compress(b" " * 10**7)
        self.answer({"content-length": len(bomb), "content-encoding": "gzip"}, bomb)

    def answer_dripping(self):
        self.answer({"content-length": 1_000})
        self.drip(b" ")

    def answer_dripping_headers(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
        self.drip(b"a")

    def drip(self, drop):
        for _ in range(50):
            self.wfile.write(drop)
            self.wfile.flush()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def url():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def post(url, limits=LIMITS):
    async def posted():
        client = BoundedClient(limits)
        try:
            return await client.post(url, json={})
        finally:
            await client.close()

    return asyncio.run(posted())


def test_a_response_within_the_limits_is_returned_and_no_compression_is_requested(url):
    response = post(f"{url}/short")
    assert (response.status_code, response.text) == (200, "identity")


@pytest.mark.parametrize(
    ("name", "reason"), [("large", "larger than 1,000 bytes"), ("compressed", r"compressed \(gzip")]
)
def test_a_response_that_is_too_large_or_compressed_is_refused(url, name, reason):
    with pytest.raises(ResponseError, match=reason):
        post(f"{url}/{name}")


def test_the_error_of_a_response_that_is_too_large_has_its_own_type(url):
    with pytest.raises(ResponseTooLargeError):
        post(f"{url}/large")


@pytest.mark.parametrize("name", ["dripping", "dripping_headers"])
@pytest.mark.parametrize("limits", [LIMITS, CUT])
def test_a_slow_response_is_dropped_after_the_total_time(url, name, limits):
    started = time.monotonic()
    with pytest.raises(ResponseError, match=r"within 0\.5 s"):
        post(f"{url}/{name}", limits)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(("name", "length"), [("large", 1_000), ("compressed", 0)])
def test_where_the_status_counts_the_content_is_cut(url, name, length):
    response = post(f"{url}/{name}", CUT)
    assert (response.status_code, len(response.content)) == (200, length)
