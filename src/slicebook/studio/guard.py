"""What stands between the network and the page: who may ask, how much at a time, and how large."""

from __future__ import annotations

import base64
import re
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

LOCAL = ("127.0.0.1", "localhost", "[::1]")
HEALTH = "/health"
MAX_JSON = 4 * 1024**2  # bytes of a request that is no upload; a painted mask of 1024 × 1024 pixels fits
MAX_DRAINED = 16 * 1024**2  # bytes read of a refused request, so that its sender reads the answer
MAX_POSTS = 24  # requests with content at a time
MAX_OPEN = 256  # requests at a time, open streams included
MAX_FAILURES, FAILURE_SECONDS = 10, 60.0  # wrong passwords, and how long they count
# The page may load nothing from elsewhere. Its own framework needs inline scripts and styles.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True)
class Refusal:
    """An answer that the page's own program never sees."""

    code: int
    words: str
    headers: tuple[tuple[bytes, bytes], ...] = ()

    async def send(self, send: Send) -> None:
        """Send it."""
        content = self.words.encode() + b"\n"
        head = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(content))]
        await send(
            {"type": "http.response.start", "status": self.code, "headers": [*head, *self.headers, *HEADERS]}
        )
        await send({"type": "http.response.body", "body": content})


NO_LENGTH = Refusal(400, "The length of the request is not a number.")
TOO_LARGE = Refusal(413, "The file is larger than the studio takes.", ((b"connection", b"close"),))
BUSY = Refusal(503, "The studio is busy; try again.", ((b"retry-after", b"5"),))
TOO_MANY = Refusal(429, "Too many wrong passwords; wait a minute.", ((b"retry-after", b"60"),))
STRANGER = Refusal(403, "This address is not served here.")
LOGIN = Refusal(
    401, "A password is wanted.", ((b"www-authenticate", b'Basic realm="slicebook", charset="UTF-8"'),)
)


class Guard:
    """Checks every request before the application sees it, and counts the bytes that it sends.

    Args:
        app: The application.
        max_upload: Bytes of an upload.
        password: Wanted of every request but /health; None for a studio that only this machine reaches.
    """

    def __init__(self, app: App, *, max_upload: int, password: str | None) -> None:
        self.app, self.max_upload, self.password = app, max_upload, password
        self._posts = self._open = 0
        self._failures: deque[float] = deque(maxlen=MAX_FAILURES)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {key.lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            if refusal is TOO_LARGE and int(headers.get(b"content-length", "0")) <= MAX_DRAINED:
                await _drain(receive)
            await refusal.send(send)
            return
        posts = scope["method"] not in ("GET", "HEAD")
        self._open += 1
        self._posts += posts
        try:
            await self._pass(scope, receive, send, self._limit(scope["path"]))
        finally:
            self._open -= 1
            self._posts -= posts

    def _refusal(self, scope: Message, headers: dict[bytes, str]) -> Refusal | None:
        """Return the answer to a request that must not pass."""
        host = headers.get(b"host", "")
        # Without a password, another site could reach this one under a name of its own (DNS rebinding).
        if (
            self.password is None
            and urlsplit(f"//{host}").netloc.rsplit(":", 1)[0] not in LOCAL
            and host not in LOCAL
        ):
            return STRANGER
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return STRANGER
        if scope["path"] == HEALTH:
            return Refusal(200, "ok")
        if self.password is not None and (refusal := self._password_refusal(headers)):
            return refusal
        if self._open >= MAX_OPEN or (scope["method"] != "GET" and self._posts >= MAX_POSTS):
            return BUSY
        length = headers.get(b"content-length", "0")
        if not re.fullmatch("[0-9]{1,18}", length):
            return NO_LENGTH
        if int(length) > self._limit(scope["path"]):
            return TOO_LARGE
        return None

    def _password_refusal(self, headers: dict[bytes, str]) -> Refusal | None:
        assert self.password is not None
        kind, _, encoded = headers.get(b"authorization", "").partition(" ")
        if not encoded:
            return LOGIN
        recent = [moment for moment in self._failures if time.monotonic() - moment < FAILURE_SECONDS]
        if len(recent) >= MAX_FAILURES:
            return TOO_MANY
        try:
            given = base64.b64decode(encoded).partition(b":")[2]
        except ValueError:
            given = b""
        if kind.lower() != "basic" or not secrets.compare_digest(given, self.password.encode()):
            self._failures.append(time.monotonic())
            return LOGIN
        return None

    def _limit(self, path: str) -> int:
        return self.max_upload + MAX_JSON if path.endswith("/upload") else MAX_JSON

    async def _pass(self, scope: Message, receive: Receive, send: Send, limit: int) -> None:
        """Hand a request on. One that sends more than its limit is cut off and answered 413."""
        taken, started, cut = 0, False, False

        async def counted() -> Message:
            nonlocal taken, cut
            message = await receive()
            taken += len(message.get("body", b""))
            cut = cut or taken > limit
            return {"type": "http.disconnect"} if cut else message

        async def answer(message: Message) -> None:
            nonlocal started
            if cut and not started:
                return
            if message["type"] == "http.response.start":
                started = True
                own = {key for key, _ in HEADERS[:-1]}
                kept = [(key, value) for key, value in message["headers"] if key.lower() not in own]
                stored = any(key.lower() == b"cache-control" for key, _ in kept)
                message = {**message, "headers": [*kept, *HEADERS[: len(HEADERS) - stored]]}
            await send(message)

        try:
            await self.app(scope, counted, answer)
        except Exception:
            if not cut:
                raise
        if cut and not started:
            await TOO_LARGE.send(send)


async def _drain(receive: Receive) -> None:
    """Read the rest of a request, and forget it."""
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
