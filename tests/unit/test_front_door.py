"""The front door, with real runtime processes behind it and handlers of a few lines."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import textwrap
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from local import handler_pool
from local.front_door import FrontDoor, front_door
from local.handler_pool import PoolError
from local.routing import Router
from local.stack import Function
from local.template import Api, GatewayResponse, Route
from naru import streaming_runtime
from tests.waiting import PATIENCE_S

LAYER = Path(streaming_runtime.__file__).parent.parent
STREAMS = "import os, pathlib, time\nfrom naru.streaming_runtime import install\ninstall()\n"
BUFFERS = "import os, pathlib, time\n"
ERRORS = {
    "MISSING_AUTHENTICATION_TOKEN": GatewayResponse(404, {"x-request-id": "context.requestId"}, '{"unknown":true}'),
    "DEFAULT_4XX": GatewayResponse(
        None,
        {"x-request-id": "context.requestId", "x-fixed": "'a b'"},
        '{"message":$context.error.messageString,"plain":"$context.error.message","id":"$context.requestId","x":"$5"}',
    ),
    "DEFAULT_5XX": GatewayResponse(None, {}, '{"server":"$context.error.responseType"}'),
}


def route(resource: str = "/do", method: str = "POST", *, streams: bool = True, timeout_ms: int = 20_000) -> Route:
    return Route(method, resource, "Tiny", streams, timeout_ms)


@asynccontextmanager
async def door_to(
    folder: Path,
    source: str,
    *routes: Route,
    timeout_s: int = 120,
    start: int = 1,
    limit: int = 1,
    binary: frozenset[str] = frozenset(),
) -> AsyncIterator[tuple[FrontDoor, httpx.AsyncClient]]:
    """A front door to one function, and a client of it; `source` defines ``lambda_handler``."""
    code = folder / "code"
    code.mkdir()
    routes = routes or (route(),)
    (code / "app.py").write_text((STREAMS if routes[0].streams else BUFFERS) + textwrap.dedent(source))
    function = Function(
        logical_id="Tiny",
        name="tiny",
        arn="arn:aws:lambda:ap-northeast-2:000000000000:function:tiny",
        handler="app.lambda_handler",
        folder=code,
        layer_folders=(LAYER,),
        environment={"FOLDER": str(folder)},
        memory_mb=128,
        timeout_s=timeout_s,
        log_group="/aws/lambda/tiny",
        log_format="Text",
    )
    api = Api("v1", routes, ERRORS, binary)
    served = front_door(
        api,
        {"Tiny": function},
        endpoint_url="http://127.0.0.1:1",
        logs=folder,
        start_processes=start,
        max_processes=limit,
    )
    async with served as door, httpx.AsyncClient(base_url=door.base_url, timeout=PATIENCE_S, trust_env=False) as client:
        yield door, client


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await scenario()

    asyncio.run(limited())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process brings about; the test's own time limit ends it."""
    while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
        await asyncio.sleep(0.01)


# ── The event ──────────────────────────────────────────────────────────────────────────────────────────────

ECHO = """
import json
def lambda_handler(event, context):
    return {"statusCode": 200, "body": json.dumps(event)}
"""


def test_the_event_is_that_of_a_rest_api(tmp_path: Path) -> None:
    """Each field that a handler or Powertools reads."""

    async def scenario() -> None:
        async with door_to(tmp_path, ECHO, route("/a/{name}")) as (_, client):
            answer = await client.post(
                "/a/x%2Fy%20z?q=1&q=2&empty=&k=%EB%82%98",
                content='{"말":1}',
                headers=[("X-Twice", "1"), ("X-Twice", "2"), ("User-Agent", "ua"), ("X-Forwarded-For", "10.0.0.1")],
            )
            event = answer.json()
            context = event["requestContext"]
            host = client.base_url.netloc.decode()
            assert (event["resource"], event["path"], event["httpMethod"]) == ("/a/{name}", "/a/x%2Fy%20z", "POST")
            assert event["pathParameters"] == {"name": "x/y z"}
            assert event["queryStringParameters"] == {"q": "2", "empty": "", "k": "나"}
            assert event["multiValueQueryStringParameters"] == {"q": ["1", "2"], "empty": [""], "k": ["나"]}
            assert event["headers"]["x-twice"] == "2"
            assert event["multiValueHeaders"]["x-twice"] == ["1", "2"]
            assert event["headers"]["Host"] == host
            assert event["headers"]["X-Forwarded-For"] == "10.0.0.1, 127.0.0.1"
            assert "content-length" not in event["headers"]
            assert (event["body"], event["isBase64Encoded"], event["stageVariables"]) == ('{"말":1}', False, None)
            assert (context["stage"], context["resourcePath"], context["httpMethod"]) == ("v1", "/a/{name}", "POST")
            assert context["path"] == "/v1/a/x%2Fy%20z"
            assert (context["identity"]["sourceIp"], context["identity"]["userAgent"]) == ("127.0.0.1", "ua")
            assert context["requestId"] == answer.headers["x-amzn-requestid"]

    run(scenario)


def test_what_is_absent_is_null(tmp_path: Path) -> None:
    """API Gateway says null, not {} and not an empty string."""

    async def scenario() -> None:
        async with door_to(tmp_path, ECHO, route(method="GET")) as (_, client):
            event = (await client.get("/do")).json()
            nulls = ["pathParameters", "queryStringParameters", "multiValueQueryStringParameters", "body"]
            assert [event[name] for name in nulls] == [None] * 4

    run(scenario)


@pytest.mark.parametrize(
    ("content_type", "content", "binary", "encoded"),
    [
        ("image/png", b"plain", frozenset({"image/*"}), True),
        ("image/png", b"plain", frozenset({"*/*"}), True),
        ("image/png; a=b", b"plain", frozenset({"image/png"}), True),
        ("image/png", b"plain", frozenset(), False),
        ("application/json", b"\xff\xfe", frozenset(), True),
    ],
)
def test_bodies_are_base64_for_binary_types_only(
    tmp_path: Path, content_type: str, content: bytes, binary: frozenset[str], encoded: bool
) -> None:
    """And for bytes that are no text, which no JSON event could hold."""

    async def scenario() -> None:
        async with door_to(tmp_path, ECHO, binary=binary) as (_, client):
            event = (await client.post("/do", content=content, headers={"content-type": content_type})).json()
            assert event["isBase64Encoded"] is encoded
            assert (base64.b64decode(event["body"]) if encoded else event["body"].encode()) == content

    run(scenario)


# ── Routes and API Gateway's own answers ───────────────────────────────────────────────────────────────────


def test_fixed_segments_go_before_parameters_and_parameters_before_proxies() -> None:
    """As API Gateway chooses, whatever the order in the template; a slash at the end does not matter."""
    router = Router([route("/{proxy+}"), route("/a/{x}"), route("/a/b"), route("/any", "ANY")])

    def chosen(path: str, method: str = "POST") -> tuple[str, dict[str, str]]:
        found, parameters = router.match(method, path)
        return found.resource, parameters

    assert chosen("/a/b") == ("/a/b", {})
    assert chosen("/a/b/") == ("/a/b", {})
    assert chosen("/a/c") == ("/a/{x}", {"x": "c"})
    assert chosen("/a/c/d") == ("/{proxy+}", {"proxy": "a/c/d"})
    assert chosen("/any", "DELETE") == ("/any", {})


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/do"), ("POST", "/v1/else"), ("POST", "/do"), ("HEAD", "/v1x")]
)
def test_an_unknown_path_or_method_is_answered_by_the_gateway(tmp_path: Path, method: str, path: str) -> None:
    """Without a function being asked."""

    async def scenario() -> None:
        async with door_to(tmp_path, ECHO) as (_, client):
            answer = await client.request(method, client.base_url.copy_with(raw_path=path.encode()))
            assert answer.status_code == 404
            assert answer.headers["x-request-id"] == answer.headers["x-amzn-requestid"]
            assert answer.text == ("" if method == "HEAD" else '{"unknown":true}')

    run(scenario)


@pytest.mark.parametrize("size", [6 * 1024 * 1024, 10 * 1024 * 1024 + 1])
def test_too_large_requests_are_refused_with_the_templates_variables_filled_in(tmp_path: Path, size: int) -> None:
    """Beyond Lambda's 6 MB, and beyond API Gateway's 10 MB; the default answer for 4xx serves here."""

    async def scenario() -> None:
        async with door_to(tmp_path, ECHO) as (_, client):
            answer = await client.post("/do", content=b"x" * size)
            request_id = answer.headers["x-request-id"]
            assert answer.status_code == 413
            assert answer.headers["x-fixed"] == "a b"
            assert answer.json() == {
                "message": "Request Too Long",
                "plain": "Request Too Long",
                "id": request_id,
                "x": "$5",
            }

    run(scenario)


# ── Answers ────────────────────────────────────────────────────────────────────────────────────────────────


def test_chunks_are_forwarded_as_they_arrive(tmp_path: Path) -> None:
    """The function yields the next chunk only when the client has got the one before."""
    source = """
    def body():
        for name in "abc":
            yield name.encode()
            while not pathlib.Path(os.environ["FOLDER"], name).exists():
                time.sleep(0.002)
    def lambda_handler(event, context):
        return {"statusCode": 201, "headers": {"Content-Type": "text/event-stream", "x-n": 1}, "body": body(),
                "multiValueHeaders": {"x-m": ["1", "2"]}, "cookies": ["a=b"]}
    """

    async def scenario() -> None:
        async with door_to(tmp_path, source) as (_, client), client.stream("POST", "/do") as answer:
            assert answer.status_code == 201
            assert answer.headers["content-type"] == "text/event-stream"
            assert answer.headers.get_list("x-m") == ["1", "2"]
            assert (answer.headers["x-n"], answer.headers["set-cookie"]) == ("1", "a=b")
            seen = []
            async for chunk in answer.aiter_raw():
                seen.append(chunk.decode())
                (tmp_path / seen[-1]).touch()
            assert seen == ["a", "b", "c"]

    run(scenario)


def test_a_stream_that_fails_is_not_ended_cleanly(tmp_path: Path) -> None:
    """What was sent arrives, then the client's HTTP library complains."""
    source = """
    def body():
        yield b"half"
        raise LookupError
    def lambda_handler(event, context):
        return {"statusCode": 200, "body": body()}
    """

    async def scenario() -> None:
        async with door_to(tmp_path, source) as (door, client):
            for _ in range(2):
                async with client.stream("POST", "/do") as answer:
                    got, chunks = b"", answer.aiter_raw()
                    while got != b"half":
                        got += await anext(chunks)
                    with pytest.raises(httpx.RemoteProtocolError):
                        await anext(chunks)
            assert "LookupError" in door.log("Tiny")

    run(scenario)


BAD_RESULTS = [
    "{'body': 'no status'}",
    "{'statusCode': 'many'}",
    "{'statusCode': 199}",
    "{'statusCode': 200, 'headers': {'x': 'a\\nb'}}",
    "{'statusCode': 200, 'headers': {'x': '한'}}",
    "{'statusCode': 200, 'headers': {'x': None}}",
    "{'statusCode': 200, 'body': 7}",
    "1 / 0",
]


@pytest.mark.parametrize("streams", [True, False])
def test_failures_and_malformed_results_are_502(tmp_path: Path, streams: bool) -> None:
    """The client is told nothing of the reason; the log is."""
    source = f"""
    results = {BAD_RESULTS!r}
    def lambda_handler(event, context):
        return eval(results[int(event["body"])])
    """

    async def scenario() -> None:
        async with door_to(tmp_path, source, route(streams=streams)) as (door, client):
            for number, result in enumerate(BAD_RESULTS):
                answer = await client.post("/do", content=str(number))
                assert (answer.status_code, answer.text) == (502, '{"server":"INTEGRATION_FAILURE"}'), result
            assert door.log("Tiny").count("[Tiny] POST /do") == len(BAD_RESULTS)

    run(scenario)


def test_a_buffered_function_may_answer_base64(tmp_path: Path) -> None:
    """And headers of both kinds; a pair that is in both is sent once. JSON is the default type."""
    source = """
    def lambda_handler(event, context):
        return {"statusCode": 200, "body": "AP8=", "isBase64Encoded": True, "headers": {"a": "1", "b": "2"},
                "multiValueHeaders": {"b": ["2", "3"]}}
    """

    async def scenario() -> None:
        async with door_to(tmp_path, source, route(streams=False)) as (_, client):
            answer = await client.post("/do")
            assert answer.content == b"\x00\xff"
            assert (answer.headers["a"], answer.headers.get_list("b")) == ("1", ["2", "3"])
            assert (answer.headers["content-type"], answer.headers["content-length"]) == ("application/json", "2")

    run(scenario)


def test_a_buffered_answer_where_the_integration_streams_is_malformed(tmp_path: Path) -> None:
    """A handler that forgot `install` must not pass here and fail on AWS."""

    async def scenario() -> None:
        async with door_to(tmp_path, "install = None\n" + ECHO, route(streams=False), route("/s")) as (_, client):
            assert (await client.post("/do")).status_code == 200
            assert (await client.post("/s")).status_code == 502

    run(scenario)


# ── Processes ──────────────────────────────────────────────────────────────────────────────────────────────

SLOW = """
def lambda_handler(event, context):
    folder = pathlib.Path(os.environ["FOLDER"])
    if event["body"] == "wait":
        (folder / f"began-{os.getpid()}").touch()
        while not (folder / "go").exists():
            time.sleep(0.002)
    if event["body"] == "exit":
        os._exit(3)
    return {"statusCode": 200, "body": str(os.getpid())}
"""


def test_the_pool_grows_while_all_are_busy_and_queues_beyond(tmp_path: Path) -> None:
    """Three at once on two processes: the third gets its answer from one of them."""

    async def scenario() -> None:
        async with door_to(tmp_path, SLOW, limit=2) as (door, client), asyncio.TaskGroup() as group:
            assert door.process_count == 1
            requests = [group.create_task(client.post("/do", content="wait")) for _ in range(3)]
            await until(lambda: len(list(tmp_path.glob("began-*"))) == 2)
            assert door.process_count == 2
            (tmp_path / "go").touch()
            answers = [await request for request in requests]
            assert [answer.status_code for answer in answers] == [200, 200, 200]
            assert len({answer.text for answer in answers}) == 2

    run(scenario)


def test_more_than_the_queue_holds_is_an_error_that_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lambda throttles; API Gateway says that its integration has failed."""
    monkeypatch.setattr(handler_pool, "_QUEUE_LENGTH", 0)

    async def scenario() -> None:
        async with door_to(tmp_path, SLOW) as (_, client), asyncio.TaskGroup() as group:
            first = group.create_task(client.post("/do", content="wait"))
            await until(lambda: bool(list(tmp_path.glob("began-*"))))
            refused = await client.post("/do")
            assert (refused.status_code, refused.text) == (502, '{"server":"INTEGRATION_FAILURE"}')
            (tmp_path / "go").touch()
            assert (await first).status_code == 200

    run(scenario)


def test_a_crash_is_502_and_the_process_is_replaced(tmp_path: Path) -> None:
    """The next request finds a new process."""

    async def scenario() -> None:
        async with door_to(tmp_path, SLOW) as (door, client):
            before = (await client.post("/do")).text
            assert (await client.post("/do", content="exit")).status_code == 502
            after = await client.post("/do")
            assert (after.status_code, door.process_count) == (200, 1)
            assert after.text != before
            assert "Runtime.ExitError: the process ended, exit status 3" in door.log("Tiny")

    run(scenario)


def test_killing_an_idle_process_costs_nobody_a_request(tmp_path: Path) -> None:
    """Whoever comes next waits for the replacement."""

    async def scenario() -> None:
        async with door_to(tmp_path, SLOW) as (door, client):
            killed = door.kill_handler(in_flight=False)
            with pytest.raises(LookupError):
                door.kill_handler(in_flight=True)
            await until(lambda: "signal: SIGKILL" in door.log("Tiny"))
            answer = await client.post("/do")
            assert (answer.status_code, answer.text != str(killed)) == (200, True)

    run(scenario)


def test_killing_a_process_cuts_the_stream_it_was_sending(tmp_path: Path) -> None:
    """And only that: the next request is answered."""
    source = """
    def body():
        yield str(os.getpid()).encode()
        time.sleep(60)
    def lambda_handler(event, context):
        return {"statusCode": 200, "body": body() if event["body"] == "wait" else b"ok"}
    """

    async def scenario() -> None:
        async with door_to(tmp_path, source) as (door, client):
            async with client.stream("POST", "/do", content="wait") as answer:
                chunks = answer.aiter_raw()
                pid = int(await anext(chunks))
                assert door.kill_handler("Tiny", in_flight=True) == pid
                with pytest.raises(httpx.RemoteProtocolError):
                    await anext(chunks)
            assert (await client.post("/do")).text == "ok"

    run(scenario)


def test_a_function_that_exceeds_its_timeout_is_killed(tmp_path: Path) -> None:
    """Its request gets 502, and the next one a fresh process."""

    async def scenario() -> None:
        async with door_to(tmp_path, SLOW, timeout_s=1) as (door, client):
            assert (await client.post("/do", content="wait")).status_code == 502
            pool = door.pools["Tiny"]
            pool.function = replace(pool.function, timeout_s=60)  # a busy machine may need a while
            assert (await client.post("/do")).status_code == 200
            assert "Sandbox.Timedout: Task timed out after 1.00 seconds" in door.log("Tiny")

    run(scenario)


def test_an_integration_that_takes_too_long_is_504_and_its_function_goes_on(tmp_path: Path) -> None:
    """API Gateway gives up waiting; Lambda does not."""
    source = SLOW.replace("return {", "(folder / 'done').touch()\n    return {")

    async def scenario() -> None:
        async with door_to(tmp_path, source, route(timeout_ms=200)) as (_, client):
            answer = await client.post("/do", content="wait")
            assert (answer.status_code, answer.text) == (504, '{"server":"INTEGRATION_TIMEOUT"}')
            (tmp_path / "go").touch()
            await until((tmp_path / "done").exists)

    run(scenario)


def test_a_client_that_leaves_does_not_stop_the_function(tmp_path: Path) -> None:
    """The rest is drained: the generator reaches its end, and the process takes the next event."""
    source = """
    def body():
        for number in range(100):
            yield b"x" * 50_000
        pathlib.Path(os.environ["FOLDER"], "drawn").touch()
    def lambda_handler(event, context):
        return {"statusCode": 200, "body": body() if event["body"] == "long" else str(os.getpid())}
    """

    async def scenario() -> None:
        async with door_to(tmp_path, source) as (_, client):
            pid = (await client.post("/do")).text
            async with client.stream("POST", "/do", content="long") as answer:
                await anext(answer.aiter_raw())
            await until((tmp_path / "drawn").exists)
            assert (await client.post("/do")).text == pid

    run(scenario)


def test_a_handler_that_cannot_be_imported_is_reported_at_once(tmp_path: Path) -> None:
    """With the reason, in the error and not only in a log."""

    async def scenario() -> None:
        with pytest.raises(PoolError, match="No module named 'nowhere'"):
            async with door_to(tmp_path, "import nowhere"):
                pass

    run(scenario)


def test_a_process_sees_what_lambda_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of the developer's shell."""
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("HOLYSHEEP_API_KEY", "secret")
    source = """
    import json
    def lambda_handler(event, context):
        left_ms = context.get_remaining_time_in_millis()
        return {"statusCode": 200, "body": json.dumps({**os.environ, "left_ms": left_ms, "arn": context.invoked_function_arn})}
    """

    async def scenario() -> None:
        async with door_to(tmp_path, source) as (_, client):
            seen: dict[str, Any] = (await client.post("/do")).json()
            assert seen["AWS_LAMBDA_FUNCTION_NAME"] == "tiny"
            assert seen["_HANDLER"] == "app.lambda_handler"
            assert seen["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
            assert 60_000 < seen["left_ms"] <= 120_000
            assert seen["arn"].endswith(":function:tiny")
            assert {"AWS_PROFILE", "HOLYSHEEP_API_KEY"} & set(seen) == set()

    run(scenario)


def test_connections_are_kept_and_requests_may_overlap(tmp_path: Path) -> None:
    """Forty requests by eight clients, each with its own answer."""

    async def scenario() -> None:
        async with door_to(tmp_path, ECHO, start=2, limit=4) as (_, client):

            async def ask(number: int) -> None:
                answer = await client.post("/do", content=json.dumps(number))
                assert json.loads(answer.json()["body"]) == number

            async with asyncio.TaskGroup() as group:
                for number in range(40):
                    group.create_task(ask(number))

    run(scenario)


@pytest.mark.parametrize(
    ("coding", "content", "status"),
    [
        ("gzip", gzip.compress(b"abc"), 200),
        ("GZIP", gzip.compress(b"abc"), 200),
        ("deflate", zlib.compress(b"abc"), 200),
        ("identity", b"abc", 200),
        ("br", b"abc", 415),
        ("gzip", b"abc", 415),
        ("gzip", gzip.compress(b"abc")[:-4], 415),
        ("gzip", gzip.compress(bytes(11 * 2**20)), 413),
    ],
)
def test_a_compressed_body_is_decompressed_before_a_function_sees_it(
    tmp_path: Path, coding: str, content: bytes, status: int
) -> None:
    async def scenario() -> None:
        async with door_to(tmp_path, ECHO) as (_, client):
            answer = await client.post("/do", content=content, headers={"Content-Encoding": coding})
            assert answer.status_code == status
            if status == 200:
                assert answer.json()["body"] == "abc"
                assert answer.json()["isBase64Encoded"] is False

    run(scenario)
