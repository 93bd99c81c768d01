"""The slim AWS calls, held against botocore: the same signatures, the same exceptions, the same patience."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import random
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials as BotocoreCredentials
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ClientError

from local.http_server import ClientGone, Request, Response, serve
from naru.aws_calls import Credentials, DynamoDB, Lazily, SecretsManager, call, credentials_source

REGION = "ap-northeast-2"
KEYS = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None)
Answer = tuple[int, dict[str, str], bytes]


class Service:
    """Answers what it was told to, in turn, and then {} for ever; remembers what it was asked."""

    def __init__(self, *answers: Answer | Callable[[Response], Awaitable[None]]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[dict[str, str], bytes]] = []
        self.connections: set[Any] = set()  # the transports themselves: an id may be used again
        self.reached = asyncio.Event()

    async def handle(self, request: Request, response: Response) -> None:
        self.asked.append((dict(request.headers), await request.body()))
        self.connections.add(response.transport)
        self.reached.set()
        answer = self.answers.pop(0) if self.answers else (200, {}, b"{}")
        if not isinstance(answer, tuple):
            await answer(response)
            raise ClientGone
        status, headers, body = answer
        await response.send(status, list(headers.items()), body)


@asynccontextmanager
async def running(service: Service, **options: Any) -> AsyncIterator[DynamoDB]:
    async with serve(service.handle) as server:
        url = f"http://{server.host}:{server.port}"
        credentials = options.pop("credentials", lambda: KEYS)
        dynamodb = DynamoDB(region=REGION, endpoint_url=url, credentials=credentials, rng=_AtOnce(), **options)
        try:
            yield dynamodb
        finally:
            dynamodb.close()


class _AtOnce(random.Random):
    def random(self) -> float:
        return 0.0


def error(code: str, status: int = 400, **members: Any) -> Answer:
    body = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "no", **members}
    return status, {"content-type": "application/x-amz-json-1.0"}, json.dumps(body).encode()


# ── Signatures ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("token", [None, "session/token=="])
@pytest.mark.parametrize(("kind", "operation"), [(DynamoDB, "UpdateItem"), (SecretsManager, "GetSecretValue")])
def test_it_signs_as_botocore_does(
    token: str | None, kind: type[DynamoDB | SecretsManager], operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = kind(region=REGION, credentials=lambda: Credentials(KEYS.access_key, KEYS.secret_key, token))
    body = '{"Key":{"meter":{"S":"열쇠"}}}'.encode()
    head = service._signed_head(operation, body, 1_795_338_000.7).decode()
    line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    headers = dict(each.split(":", 1) for each in lines)
    assert line == "POST / HTTP/1.1"
    signed = {name: headers[name] for name in ("content-type", "x-amz-target")}
    request = AWSRequest("POST", f"https://{headers['host']}/", data=body, headers=signed)
    moment = headers["x-amz-date"]

    at = dt.datetime.strptime(moment, "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: at)
    credentials = BotocoreCredentials(KEYS.access_key, KEYS.secret_key, token)
    SigV4Auth(credentials, service.service, REGION).add_auth(request)
    assert headers["authorization"].strip() == request.headers["Authorization"]
    assert headers.get("x-amz-security-token") == token
    assert headers["content-length"].strip() == str(len(body))


def test_credentials_are_asked_for_with_every_call() -> None:
    """Those of SnapStart expire; botocore renews them behind this."""

    async def scenario() -> None:
        given = iter([KEYS, Credentials("AKIDNEXT", "another", "token")])
        service = Service()
        async with running(service, credentials=lambda: next(given)) as dynamodb:
            await dynamodb.get_item(TableName="t")
            await dynamodb.get_item(TableName="t")
        first, second = (headers["authorization"] for headers, _ in service.asked)
        assert "AKIDEXAMPLE/" in first
        assert "AKIDNEXT/" in second
        assert service.asked[1][0]["x-amz-security-token"] == "token"

    asyncio.run(scenario())


def test_lambdas_credentials_are_taken_from_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDLAMBDA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    assert credentials_source()() == Credentials("AKIDLAMBDA", "secret", "token")


def test_others_are_found_and_renewed_by_botocore(monkeypatch: pytest.MonkeyPatch) -> None:
    """SnapStart has no keys in the environment, but an address that gives some that expire."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    given: list[str] = []

    class Renewing:
        def get_frozen_credentials(self) -> Any:
            given.append(f"AKID{len(given)}")
            return ReadOnlyCredentials(given[-1], "secret", "token", None)

    monkeypatch.setattr("botocore.session.Session.get_credentials", lambda _: Renewing())
    source = credentials_source()
    assert [source().access_key, source().access_key] == ["AKID0", "AKID1"]


def test_a_wrong_clock_is_set_by_the_services(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        late = error("InvalidSignatureException")
        late[1]["Date"] = "Sun, 22 Nov 2026 12:00:00 GMT"
        service = Service(late)
        async with running(service) as dynamodb:
            assert await dynamodb.get_item(TableName="t") == {}
            await dynamodb.get_item(TableName="t")
        assert [headers["x-amz-date"][:11] for headers, _ in service.asked[1:]] == ["20261122T12"] * 2

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 86_400 * 400)
    asyncio.run(scenario())


def test_a_wrong_secret_is_not_taken_for_a_wrong_clock() -> None:
    async def scenario() -> None:
        from email.utils import formatdate

        wrong = error("InvalidSignatureException")
        wrong[1]["Date"] = formatdate(usegmt=True)
        service = Service(wrong)
        async with running(service) as dynamodb:
            with pytest.raises(ClientError, match="InvalidSignatureException"):
                await dynamodb.get_item(TableName="t")
        assert len(service.asked) == 1

    asyncio.run(scenario())


# ── Failures ───────────────────────────────────────────────────────────────────────────────────────────────

CONDITION = error("ConditionalCheckFailedException", Item={"meter": {"S": "key#1"}, "kept": {"B": "AP8="}})


@pytest.mark.parametrize(
    "answer",
    [
        CONDITION,
        error("TransactionCanceledException", CancellationReasons=[{"Code": "TransactionConflict"}, {"Code": "None"}]),
        error("ResourceNotFoundException"),
        error("AccessDeniedException"),
    ],
    ids=["condition", "transaction", "no table", "denied"],
)
def test_a_refusal_is_the_exception_that_boto3_raises(answer: Answer) -> None:
    async def scenario() -> tuple[ClientError, ClientError, int]:
        service = Service(answer, answer)
        async with running(service) as dynamodb:
            with pytest.raises(ClientError) as ours:
                await dynamodb.update_item(TableName="t", Key={"meter": {"S": "key#1"}})
            theirs = boto3.client(
                "dynamodb",
                endpoint_url=dynamodb._url,
                region_name=REGION,
                aws_access_key_id="a",
                aws_secret_access_key="b",
                config=Config(retries={"mode": "standard", "total_max_attempts": 3}),
            )
            with pytest.raises(ClientError) as expected:
                await asyncio.to_thread(theirs.update_item, TableName="t", Key={"meter": {"S": "key#1"}})
            theirs.close()
        return ours.value, expected.value, len(service.asked)

    ours, theirs, asked = asyncio.run(scenario())
    assert asked == 2  # neither of them asked again
    assert str(ours) == str(theirs)
    assert ours.operation_name == theirs.operation_name
    for part in ("Error", "Item", "CancellationReasons"):
        if part == "Error":
            assert ours.response["Error"] == {name: theirs.response["Error"][name] for name in ("Code", "Message")}
        else:
            assert ours.response.get(part) == theirs.response.get(part)


@pytest.mark.parametrize(
    "answer",
    [
        error("InternalServerError", 500),
        error("ProvisionedThroughputExceededException"),
        error("ThrottlingException"),
        (503, {}, b"<html>busy</html>"),
        (200, {"x-amz-crc32": "1"}, b"{}"),
    ],
    ids=["500", "throughput", "throttling", "503", "damaged"],
)
def test_what_passes_is_tried_three_times(answer: Answer) -> None:
    async def scenario() -> None:
        service = Service(answer, answer)
        async with running(service) as dynamodb:
            assert await dynamodb.update_item(TableName="t") == {}
        assert len(service.asked) == 3
        service = Service(answer, answer, answer)
        async with running(service) as dynamodb:
            with pytest.raises((ClientError, BotoCoreError)):
                await dynamodb.update_item(TableName="t")
        assert len(service.asked) == 3

    asyncio.run(scenario())


def test_nobody_there_is_botocores_exception() -> None:
    async def scenario() -> None:
        dynamodb = DynamoDB(region=REGION, endpoint_url="http://127.0.0.1:1", credentials=lambda: KEYS, rng=_AtOnce())
        with pytest.raises(BotoCoreError):
            await dynamodb.get_item(TableName="t")

    asyncio.run(scenario())


def test_silence_ends_and_is_botocores_exception() -> None:
    async def scenario() -> None:
        silence = asyncio.Event()

        async def never(_: Response) -> None:
            await silence.wait()

        service = Service(never, never)
        async with running(service, read_timeout_s=0.1, attempts=2) as dynamodb:
            with pytest.raises(BotoCoreError):
                await dynamodb.get_item(TableName="t")
            silence.set()
        assert len(service.asked) == 2

    asyncio.run(scenario())


# ── Connections ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_connection_is_used_again() -> None:
    async def scenario() -> None:
        service = Service()
        async with running(service) as dynamodb:
            for _ in range(5):
                await dynamodb.get_item(TableName="t")
        assert len(service.connections) == 1

    asyncio.run(scenario())


def test_a_connection_that_was_closed_meanwhile_costs_nothing_but_time() -> None:
    """An environment that was frozen finds its connections closed."""

    async def scenario() -> None:
        async def hang_up(response: Response) -> None:
            response.abort()

        service = Service((200, {}, b"{}"), hang_up)
        async with running(service) as dynamodb:
            await dynamodb.get_item(TableName="t")
            assert await dynamodb.get_item(TableName="t") == {}
        assert len(service.connections) == 2

    asyncio.run(scenario())


def test_a_call_that_is_cancelled_leaves_no_half_answer_for_the_next_one() -> None:
    async def scenario() -> None:
        hold = asyncio.Event()

        async def late(response: Response) -> None:
            await hold.wait()
            await response.send(200, [], b'{"of":"the first"}')

        service = Service(late, (200, {}, b'{"of":"the second"}'))
        async with running(service) as dynamodb:
            first = asyncio.create_task(dynamodb.get_item(TableName="t"))
            await service.reached.wait()
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            assert await dynamodb.get_item(TableName="t") == {"of": "the second"}
            hold.set()

    asyncio.run(scenario())


# ── Values ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_bytes_travel_as_boto3_sends_them() -> None:
    async def scenario() -> None:
        content = json.dumps({"Item": {"body": {"B": "AP8="}, "B": {"M": {"x": {"S": "열쇠"}}}}}).encode()
        checked = {"x-amz-crc32": str(zlib.crc32(content))}
        service = Service((200, checked, content))
        async with running(service) as dynamodb:
            answer = await dynamodb.put_item(TableName="t", Item={"body": {"B": b"\x00\xff"}})
        assert json.loads(service.asked[0][1])["Item"] == {"body": {"B": "AP8="}}
        assert answer["Item"] == {"body": {"B": b"\x00\xff"}, "B": {"M": {"x": {"S": "열쇠"}}}}

    asyncio.run(scenario())


def test_a_client_of_boto3_can_stand_in() -> None:
    def of_boto3(**parameters: Any) -> dict[str, Any]:
        return {"called with": parameters}

    assert asyncio.run(call(of_boto3, TableName="t")) == {"called with": {"TableName": "t"}}


def test_a_lazy_client_is_made_once_and_when_it_is_used() -> None:
    made: list[str] = []

    class Client:
        def get_item(self) -> str:
            return "an item"

    def make() -> Client:
        made.append("one")
        return Client()

    client = Lazily(make)
    assert made == []
    assert [client.get_item(), client.get_item()] == ["an item", "an item"]
    assert made == ["one"]


# ── What callers rely on ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", ["ConditionalCheckFailedException", "TransactionCanceledException"])
def test_a_refusal_is_caught_by_the_name_that_boto3_gives_it(code: str) -> None:
    async def scenario() -> None:
        service = Service(error(code))
        async with running(service) as dynamodb:
            with pytest.raises(getattr(dynamodb.exceptions, code)) as refused:
                await dynamodb.update_item(TableName="t")
        assert isinstance(refused.value, ClientError)
        assert type(refused.value).__name__ == code

    asyncio.run(scenario())


def test_a_transaction_that_is_sent_again_is_the_same_one() -> None:
    """DynamoDB makes it once however often it hears it: the first answer may have been lost on its way."""

    async def scenario() -> None:
        service = Service(error("InternalServerError", 500))
        async with running(service) as dynamodb:
            await dynamodb.transact_write_items(TransactItems=[])
            await dynamodb.transact_write_items(TransactItems=[])
        first, again, other = (json.loads(body)["ClientRequestToken"] for _, body in service.asked)
        assert first == again != other

    asyncio.run(scenario())
