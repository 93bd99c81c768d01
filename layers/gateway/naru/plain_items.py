"""DynamoDB's answers to queries without botocore's walk through every attribute of every item.

botocore looks up the shape of each value though JSON already says what it is; of a ledger's row that is three quarters
of all the time it takes to count it. The handler here takes the items as they are. They are the same, but for bytes,
which JSON has no word for: an answer that holds some is left to botocore.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

# An attribute's text cannot hold these: in JSON its quotes have backslashes before them.
_BYTES = (b'"B":', b'"BS":')


def take_items_plain(client: DynamoDBClient) -> None:
    """For all queries of this client; where botocore has no such event, nothing changes."""
    client.meta.events.register("before-parse.dynamodb.Query", _take_items)


def _take_items(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """``response_dict`` is parsed after this, ``customized_response_dict`` is then put over what was found."""
    body: bytes = response_dict["body"]
    if response_dict["status_code"] != 200 or any(mark in body for mark in _BYTES):
        return
    answer: dict[str, Any] = json.loads(body)
    customized_response_dict["Items"] = answer.pop("Items", [])
    response_dict["body"] = json.dumps(answer).encode()
