"""The stack's tables in the emulator, made from template.yaml: for what moto gets wrong, which is concurrency."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from local.emulator import CREDENTIALS, REGION, emulator
from local.gateway import in_thread
from naru.aws_calls import Credentials, DynamoDB
from tests.moto_tables import TEMPLATE


@dataclass(frozen=True)
class Tables:
    """Where the tables are; a process of its own makes its own client."""

    url: str

    def calls(self) -> Any:
        """As the functions call DynamoDB on the way of a request; without retries."""
        credentials = Credentials(CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"], None)
        return DynamoDB(region=REGION, endpoint_url=self.url, credentials=lambda: credentials, attempts=1)

    def client(self, *, connections: int = 10) -> Any:
        """A DynamoDB client, without retries: what the emulator refuses is to be seen."""
        return boto3.client(
            "dynamodb",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            config=Config(retries={"total_max_attempts": 1}, max_pool_connections=connections),
        )


@contextmanager
def emulated_tables(folder: Path, *names: str) -> Iterator[Tables]:
    """An emulator of its own with these tables of the template, called by their logical names."""
    with in_thread(lambda: emulator(folder, logs=folder)) as aws:
        tables = Tables(aws.url)
        client = tables.client()
        for name in names:
            properties = TEMPLATE["Resources"][name]["Properties"]
            client.create_table(
                TableName=name, **{key: properties[key] for key in ("AttributeDefinitions", "KeySchema", "BillingMode")}
            )
        yield tables


def clear(client: Any, table: str, *keys: str) -> None:
    """Remove every item of a table."""
    for page in client.get_paginator("scan").paginate(TableName=table):
        for item in page["Items"]:
            client.delete_item(TableName=table, Key={key: item[key] for key in keys})
