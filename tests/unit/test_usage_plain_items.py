"""Items as JSON says them are the items that botocore finds."""

from __future__ import annotations

import json
import random
from base64 import b64encode
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import ClientError

from naru.ledger import key_of, to_item
from naru.plain_items import take_items_plain
from tests.usage_world import SEOUL, any_row


class Body:
    """As much of urllib3's response as botocore reads."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self, *_: Any, **__: Any) -> Any:
        yield self._content


def ask(answer: dict[str, Any], *, plain: bool, status: int = 200) -> dict[str, Any]:
    """What a client finds in an answer of DynamoDB's."""
    client: Any = boto3.client(
        "dynamodb", region_name="ap-northeast-2", aws_access_key_id="a", aws_secret_access_key="b"
    )
    content = json.dumps(answer, ensure_ascii=False).encode()
    client.meta.events.register(
        "before-send.dynamodb.Query",
        lambda request, **_: AWSResponse(request.url, status, HTTPHeaders(), Body(content)),
    )
    if plain:
        take_items_plain(client)
    found: dict[str, Any] = client.query(TableName="LedgerTable", KeyConditionExpression="a = :a")
    found.pop("ResponseMetadata")
    return found


def test_rows_are_found_as_botocore_finds_them() -> None:
    rng = random.Random(11)
    rows = [any_row(1_795_000_000_000 + at, rng) for at in range(30)]
    items = [key_of(row.request_id, SEOUL) | to_item(row) for row in rows]
    items[0]["end_user"] = {"S": '{"B": "\\"B\\":"} 사용자'}
    answer = {"Items": items, "Count": 30, "ScannedCount": 30, "LastEvaluatedKey": key_of(rows[-1].request_id, SEOUL)}
    assert ask(answer, plain=True) == ask(answer, plain=False)


@pytest.mark.parametrize("answer", [{"Items": [], "Count": 0, "ScannedCount": 0}, {"Count": 7, "ScannedCount": 7}])
def test_no_items_are_no_items(answer: dict[str, Any]) -> None:
    plain, botocores = ask(answer, plain=True), ask(answer, plain=False)
    assert (plain["Items"], plain["Count"]) == (botocores.get("Items", []), botocores["Count"])


def test_bytes_are_bytes() -> None:
    content = {"B": b64encode(b"\x00roll-up").decode()}
    answer = {"Items": [{"about": {"S": "hours"}, "content": content, "set": {"BS": [content["B"]]}}], "Count": 1}
    assert ask(answer, plain=True) == ask(answer, plain=False)
    assert ask(answer, plain=True)["Items"][0]["content"] == {"B": b"\x00roll-up"}


def test_an_error_is_still_one() -> None:
    refused = {"__type": "com.amazonaws.dynamodb.v20120810#AccessDeniedException", "message": "no"}
    with pytest.raises(ClientError, match="AccessDenied"):
        ask(refused, plain=True, status=400)
