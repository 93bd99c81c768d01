"""The real runtime process, taught to stream, talks to a Runtime API of the test's own."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import textwrap
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local.http_server import ClientGone, Request, Response, serve
from naru import streaming_runtime
from tests.waiting import PATIENCE_S

LAYER = Path(streaming_runtime.__file__).parent.parent
STREAM = "application/vnd.awslambda.http-integration-response"


@dataclass
class Posted:
    """What the runtime sent for one invocation."""

    kind: str
    headers: dict[str, str]
    chunks: list[bytes] = field(default_factory=list)
    trailers: dict[str, str] = field(default_factory=dict)
    complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def prelude(self) -> Any:
        return json.loads(self.body.split(bytes(8), 1)[0])

    @property
    def data(self) -> bytes:
        return self.body.split(bytes(8), 1)[1]


Answer = Callable[[Posted, Request, Response], Awaitable[None]]


async def accept(posted: Posted, request: Request, response: Response) -> None:
    """Take the whole response, as the Runtime API does."""
    async for chunk in request:
        posted.chunks.append(chunk)
    posted.trailers = dict(request.trailers)
    posted.complete = True
    await response.send(202, [])


@dataclass
class Run:
    """All that was posted, and what the process printed."""

    posted: list[Posted]
    log: str


def run(
    folder: Path, source: str, *, answer: Answer = accept, invocations: int = 1, invocation_id: str | None = None
) -> Run:
    """Let the runtime handle some invocations; `source` is the handler's module after the import of `install`."""
    (folder / "app.py").write_text(
        "import pathlib, time\nfrom naru.streaming_runtime import install\ninstall()\n" + textwrap.dedent(source)
    )

    async def limited() -> Run:
        async with asyncio.timeout(PATIENCE_S):
            return await _run(folder, answer, invocations, invocation_id)

    return asyncio.run(limited())


async def _run(folder: Path, answer: Answer, invocations: int, invocation_id: str | None) -> Run:
    outcome, given, finished = Run([], ""), 0, asyncio.Event()

    async def runtime_api(request: Request, response: Response) -> None:
        nonlocal given
        if request.path.endswith("/invocation/next"):
            if given == invocations:
                finished.set()
                await request.disconnected.wait()
                raise ClientGone
            given += 1
            headers = [
                ("lambda-runtime-aws-request-id", f"id-{given}"),
                ("lambda-runtime-deadline-ms", "9999999999999"),
            ]
            headers += [("lambda-runtime-invocation-id", invocation_id)] if invocation_id else []
            await response.send(200, [*headers, ("content-type", "application/json")], b'{"path": "/"}')
            return
        posted = Posted(request.path.rsplit("/", 1)[-1], dict(request.headers))
        outcome.posted.append(posted)
        await (answer if posted.kind == "response" else accept)(posted, request, response)

    async with serve(runtime_api) as api:
        environment = {
            **os.environ,
            "AWS_LAMBDA_RUNTIME_API": f"{api.host}:{api.port}",
            "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
            "PYTHONPATH": os.pathsep.join([str(folder), str(LAYER), os.environ.get("PYTHONPATH", "")]),
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "awslambdaric", "app.lambda_handler"),
            cwd=folder,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        ended = asyncio.create_task(process.communicate())
        done = asyncio.create_task(finished.wait())
        await asyncio.wait({ended, done}, return_when=asyncio.FIRST_COMPLETED)
        survived = not ended.done()
        if survived:
            process.kill()
        done.cancel()
        outcome.log = (await ended)[0].decode()
        assert survived, f"the runtime ended by itself:\n{outcome.log}"
    return outcome


def test_a_json_answer_goes_out_in_stream_format(tmp_path: Path) -> None:
    """An integration that streams takes no other."""
    posted = run(
        tmp_path,
        """
        def lambda_handler(event, context):
            return {"statusCode": 404, "headers": {"x-a": "1"}, "multiValueHeaders": {"x-b": ["2", "3"]},
                    "cookies": ["c=4"], "body": "나루", "isBase64Encoded": False, "extra": object()}
        """,
    ).posted[0]
    assert posted.prelude == {
        "statusCode": 404,
        "headers": {"x-a": "1"},
        "multiValueHeaders": {"x-b": ["2", "3"]},
        "cookies": ["c=4"],
    }
    assert posted.data.decode() == "나루"
    assert posted.headers["content-type"] == STREAM
    assert posted.headers["lambda-runtime-function-response-mode"] == "streaming"
    assert posted.headers["transfer-encoding"] == "chunked"
    assert posted.trailers == {}


def test_bodies_may_be_bytes_base64_or_missing(tmp_path: Path) -> None:
    """All shapes of a body reach the wire as the bytes that they mean."""
    outcome = run(
        tmp_path,
        """
        bodies = iter([{"body": b"\\x00\\xff"}, {"body": "AP8=", "isBase64Encoded": True}, {"body": None}, {}])
        def lambda_handler(event, context):
            return {"statusCode": 200, **next(bodies)}
        """,
        invocations=4,
    )
    assert [posted.data for posted in outcome.posted] == [b"\x00\xff", b"\x00\xff", b"", b""]


def test_each_chunk_is_on_the_wire_before_the_next_is_drawn(tmp_path: Path) -> None:
    """The generator goes on only when the test has seen what it yielded; an empty chunk does not end the answer."""

    async def answer(posted: Posted, request: Request, response: Response) -> None:
        async for chunk in request:
            posted.chunks.append(chunk)
            for name in ("one", "two"):
                if name.encode() in posted.body:
                    (tmp_path / name).touch()
        await response.send(202, [])

    outcome = run(
        tmp_path,
        """
        def wait_for(name):
            until = time.monotonic() + 120
            while not pathlib.Path(name).exists():
                assert time.monotonic() < until, name
                time.sleep(0.005)
        def body():
            yield b"one "
            wait_for("one")
            yield b""
            yield b"two "
            wait_for("two")
            yield b"three"
        def lambda_handler(event, context):
            return {"statusCode": 200, "body": body()}
        """,
        answer=answer,
    )
    assert outcome.posted[0].data == b"one two three"


def test_a_failure_before_the_first_chunk_is_an_ordinary_function_error(tmp_path: Path) -> None:
    """Nothing has been promised yet, so API Gateway can answer 502."""
    outcome = run(
        tmp_path,
        """
        def body():
            raise LookupError("early")
            yield b""
        def lambda_handler(event, context):
            return {"statusCode": 200, "body": body()}
        """,
        invocations=2,
    )
    assert [posted.kind for posted in outcome.posted] == ["error", "error"]
    assert json.loads(outcome.posted[0].body)["errorType"] == "LookupError"


def test_a_failure_after_the_first_chunk_is_told_in_the_trailers_without_its_text(tmp_path: Path) -> None:
    """The client sees a cut stream. The words may be the user's: they are nowhere, not even in the log."""
    outcome = run(
        tmp_path,
        """
        def body():
            yield b"half"
            raise LookupError("s" + "ecret")
        def lambda_handler(event, context):
            return {"statusCode": 200, "body": body()}
        """,
        invocations=2,
    )
    first, second = outcome.posted
    details = json.loads(base64.b64decode(first.trailers["lambda-runtime-function-error-body"]))
    assert first.data == second.data == b"half"
    assert first.trailers["lambda-runtime-function-error-type"] == details["errorType"] == "LookupError"
    assert details["errorMessage"] == "the response failed after its first byte: LookupError"
    assert "in body" in "".join(details["stackTrace"])
    assert "secret" not in json.dumps(details)
    assert "the response failed after its first byte: LookupError" in outcome.log
    assert "secret" not in outcome.log


GONE = """
def body():
    try:
        yield b"first"
        for number in range(200):
            yield b"x" * 10_000
        pathlib.Path("drawn").touch()
    finally:
        pathlib.Path("closed").touch()
def lambda_handler(event, context):
    return {"statusCode": 200, "body": body()}
"""


def test_a_body_is_drawn_to_its_end_when_the_connection_breaks(tmp_path: Path) -> None:
    """The accounting is in the generator; and the next invocation is answered as if nothing had been."""
    broken: list[Posted] = []

    async def answer(posted: Posted, request: Request, response: Response) -> None:
        if broken:
            await accept(posted, request, response)
        else:
            broken.append(posted)
            async for _ in request:
                response.abort()
                raise ClientGone

    outcome = run(tmp_path, GONE, answer=answer, invocations=2)
    assert (tmp_path / "drawn").exists()
    assert (tmp_path / "closed").exists()
    assert outcome.posted[0].complete is False
    assert len(outcome.posted[1].data) == 2_000_005


def test_an_invocation_that_is_over_is_not_fatal(tmp_path: Path) -> None:
    """410: the function ran out of time, or was answered for."""

    async def answer(posted: Posted, request: Request, response: Response) -> None:
        await request.body()
        await response.send(410, [], b"{}")

    outcome = run(tmp_path, GONE, answer=answer, invocations=2)
    assert [posted.kind for posted in outcome.posted] == ["response", "response"]
    assert (tmp_path / "drawn").exists()
    assert "the Runtime API answered 410" in outcome.log


def test_a_refused_connection_does_not_stop_the_drawing(tmp_path: Path) -> None:
    """Nothing was ever sent, and still the generator runs to its end."""
    outcome = run(
        tmp_path,
        """
        import socket
        connect = socket.create_connection
        def refuse(*address):
            socket.create_connection = connect
            raise ConnectionRefusedError
        def body():
            yield b"first"
            yield b"second"
            pathlib.Path("drawn").touch()
        def lambda_handler(event, context):
            if not pathlib.Path("drawn").exists():
                socket.create_connection = refuse
            return {"statusCode": 200, "body": body()}
        """,
        invocations=2,
    )
    assert (tmp_path / "drawn").exists()
    assert outcome.posted[-1].data == b"firstsecond"


def test_the_invocation_id_is_echoed_when_there_is_one(tmp_path: Path) -> None:
    """Newer runtimes name the attempt, so that a late answer cannot land in the next one."""
    source = """
    def lambda_handler(event, context):
        return {"statusCode": 200}
    """
    assert "lambda-runtime-invocation-id" not in run(tmp_path, source).posted[0].headers
    echoed = run(tmp_path, source, invocation_id="attempt-7").posted[0].headers.get("lambda-runtime-invocation-id")
    assert echoed == "attempt-7"


def test_other_results_go_the_usual_way(tmp_path: Path) -> None:
    """A batch worker's answer is no HTTP answer."""
    outcome = run(
        tmp_path,
        """
        install()
        results = iter([{"batchItemFailures": []}, None, [1]])
        def lambda_handler(event, context):
            return next(results)
        """,
        invocations=3,
    )
    assert [posted.body for posted in outcome.posted] == [b'{"batchItemFailures": []}', b"null", b"[1]"]
    assert "lambda-runtime-function-response-mode" not in outcome.posted[0].headers


def test_install_outside_lambda_changes_nothing() -> None:
    """A unit test that imports a handler must not find its runtime replaced."""
    assert "AWS_LAMBDA_RUNTIME_API" not in os.environ
    before = set(sys.modules)
    streaming_runtime.install()
    assert {name for name in set(sys.modules) - before if name.startswith("awslambdaric")} == set()


def test_a_client_that_stops_reading_does_not_keep_the_body_from_its_end(tmp_path: Path) -> None:
    """The accounting lives there, and the function would be killed first."""

    async def never_read(_: Posted, request: Request, response: Response) -> None:
        await request.disconnected.wait()
        raise ClientGone

    ended = tmp_path / "ended"
    run(
        tmp_path,
        f"""
        def body():
            try:
                for _ in range(200):
                    yield bytes(1 << 20)
                pathlib.Path({str(ended)!r}).write_text("drawn")
            finally:
                pathlib.Path({str(ended)!r} + ".closed").write_text("closed")

        def lambda_handler(event, context):
            return {{"statusCode": 200, "body": body(), "send_until_s": time.monotonic() + 0.5}}
        """,
        answer=never_read,
    )
    assert ended.read_text() == "drawn"
    assert Path(f"{ended}.closed").read_text() == "closed"
