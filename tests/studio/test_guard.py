"""What the studio refuses: strangers, wrong passwords, large requests, and too many of them."""

import asyncio
import base64
from types import SimpleNamespace

import pytest

from slicebook.errors import ConfigError
from slicebook.studio import guard
from slicebook.studio.app import check_host
from slicebook.studio.guard import MAX_DRAINED, MAX_JSON, Guard

PASSWORD = "correct horse battery"
OURS = {"host": "127.0.0.1:7860"}


def basic(password):
    return {"authorization": "Basic " + base64.b64encode(f"me:{password}".encode()).decode()}


async def application(scope, receive, send):
    """Read a whole request, then answer 200 with its length."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RuntimeError("the client left")
        size, more = size + len(message["body"]), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-size", b"%d" % size)]})
    await send({"type": "http.response.body", "body": b"done"})


async def answer(app, path="/", *, method="GET", headers=OURS, parts=(b"",)):
    """Send one request; return its status, headers and how many of its parts were taken."""
    sent, waiting = [], list(parts)

    async def receive():
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
    }
    await app(scope, receive, send)
    head = dict(sent[0]["headers"])
    return SimpleNamespace(status=sent[0]["status"], headers=head, taken=len(parts) - len(waiting))


def status(app, *arguments, **options):
    return asyncio.run(answer(app, *arguments, **options)).status


@pytest.fixture
def local():
    return Guard(application, max_upload=1000, password=None)


@pytest.fixture
def guarded():
    return Guard(application, max_upload=1000, password=PASSWORD)


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "localhost", "[::1]:7860"])
def test_this_computer_is_answered(local, host):
    assert status(local, headers={"host": host}) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:7860", "localhost@evil.example", ""]
)
def test_another_name_of_this_computer_is_not_answered(local, host):
    assert status(local, headers={"host": host}) == 403


def test_another_site_may_not_send_anything(local):
    assert status(local, method="POST", headers={**OURS, "origin": "http://127.0.0.1:7860"}) == 200
    assert status(local, method="POST", headers={**OURS, "origin": "http://evil.example"}) == 403
    assert status(local, method="POST", headers={**OURS, "origin": "null"}) == 403


def test_an_answer_lets_the_page_load_nothing_from_elsewhere(local):
    headers = asyncio.run(answer(local)).headers
    assert headers[b"content-security-policy"].startswith(b"default-src 'self';")
    assert b"http" not in headers[b"content-security-policy"]
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-size"] == b"0"


@pytest.mark.parametrize(("size", "taken"), [(MAX_JSON + 1, 3), (MAX_DRAINED + 1, 0)])
def test_a_request_that_says_it_is_too_large_is_refused(size, taken):
    async def broken(scope, receive, send):
        raise AssertionError("the application saw it")

    app = Guard(broken, max_upload=1000, password=None)
    headers = {**OURS, "content-length": str(size)}
    found = asyncio.run(answer(app, "/x", method="POST", headers=headers, parts=(b"a", b"b", b"c")))
    assert (found.status, found.taken) == (413, taken)


def test_a_request_that_turns_out_too_large_is_cut_off(local):
    parts = [bytes(MAX_JSON // 2)] * 10
    found = asyncio.run(answer(local, "/x", method="POST", parts=parts))
    assert (found.status, found.taken) == (413, 3)


def test_an_upload_may_be_larger_than_other_requests(local):
    headers = {**OURS, "content-length": str(MAX_JSON + 900)}
    assert status(local, "/gradio_api/upload", method="POST", headers=headers) == 200
    assert status(local, "/gradio_api/queue/join", method="POST", headers=headers) == 413


@pytest.mark.parametrize("length", ["-1", "many", "٣"])
def test_a_length_that_is_no_number_is_refused(local, length):
    async def ask():
        headers = [(b"host", b"localhost"), (b"content-length", length.encode("utf-8"))]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        sent = []

        async def send(message):
            sent.append(message)

        await local(scope, None, send)
        return sent[0]["status"]

    assert asyncio.run(ask()) == 400


def test_too_many_requests_at_a_time_are_refused_and_counted_down(monkeypatch):
    monkeypatch.setattr(guard, "MAX_POSTS", 2)

    async def ask():
        gate = asyncio.Event()

        async def slow(scope, receive, send):
            await gate.wait()
            await application(scope, receive, send)

        app = Guard(slow, max_upload=1000, password=None)
        running = [asyncio.create_task(answer(app, method="POST")) for _ in range(2)]
        await asyncio.sleep(0)
        refused = await answer(app, method="POST")
        healthy = await answer(app, "/health")
        gate.set()
        return [refused.status, healthy.status, *[(await one).status for one in running]], app

    found, app = asyncio.run(ask())
    assert found == [503, 200, 200, 200]
    assert status(app, method="POST", headers=OURS) == 200


def test_a_password_is_wanted_of_everything(guarded):
    for path in ("/", "/gradio_api/info", "/download/x/y"):
        assert status(guarded, path, headers={"host": "anything"}) == 401
        assert status(guarded, path, headers={"host": "anything", **basic("wrong")}) == 401
        assert status(guarded, path, headers={"host": "anything", **basic(PASSWORD)}) == 200


@pytest.mark.parametrize("value", ["", "Basic", "Basic ***", "Bearer " + base64.b64encode(b"me:x").decode()])
def test_a_password_in_another_form_is_refused(guarded, value):
    assert status(guarded, headers={"host": "anything", "authorization": value}) == 401


def test_wrong_passwords_run_out(guarded, monkeypatch):
    for _ in range(guard.MAX_FAILURES):
        assert status(guarded, headers={"host": "anything", **basic("wrong")}) == 401
    assert status(guarded, headers={"host": "anything", **basic("wrong")}) == 429
    monkeypatch.setattr(guard, "FAILURE_SECONDS", 0.0)
    assert status(guarded, headers={"host": "anything", **basic(PASSWORD)}) == 200


def test_another_host_wants_a_password():
    check_host("127.0.0.1", None)
    check_host("0.0.0.0", PASSWORD)
    with pytest.raises(ConfigError, match=r"host 0\.0\.0\.0: .*--password-file"):
        check_host("0.0.0.0", None)
    with pytest.raises(ConfigError, match="5 characters, wanted 12"):
        check_host("0.0.0.0", "short")
