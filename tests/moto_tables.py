"""The stack's tables in moto, made from template.yaml, so that tests cannot drift from what is deployed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from moto import mock_aws
from samtranslator.yaml_helper import yaml_parse

from local.emulator import REGION

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

TEMPLATE: dict[str, Any] = yaml_parse((Path(__file__).parent.parent / "template.yaml").read_text(encoding="utf-8"))


@cache
def _session() -> boto3.Session:
    """It keeps what it has read of botocore's descriptions, which takes longer than most tests."""
    return boto3.Session(region_name=REGION, aws_access_key_id="test", aws_secret_access_key="test")


def client(service: Any) -> Any:
    """A client of a test's own, for moto."""
    return _session().client(service, config=Config(retries={"total_max_attempts": 1}))


def calls_reach_moto(patch: pytest.MonkeyPatch) -> None:
    """Handlers that are loaded from now on call DynamoDB and Secrets Manager through boto3, which moto takes hold of."""
    patch.setattr("naru.aws_calls.DynamoDB", lambda **_: client("dynamodb"))
    patch.setattr("naru.aws_calls.SecretsManager", lambda **_: client("secretsmanager"))


@contextmanager
def tables(*names: str) -> Iterator[DynamoDBClient]:
    """A DynamoDB client that sees these tables of the template, called by their logical names."""
    with mock_aws():
        dynamodb = client("dynamodb")
        for name in names:
            properties = TEMPLATE["Resources"][name]["Properties"]
            dynamodb.create_table(
                TableName=name, **{key: properties[key] for key in ("AttributeDefinitions", "KeySchema", "BillingMode")}
            )
        yield dynamodb
