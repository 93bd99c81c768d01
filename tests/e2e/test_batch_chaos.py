"""A batch while everything goes wrong: workers killed, messages delivered twice, a provider that fails and cuts.

NARU_LONG_TESTS=1 takes 2,000 lines.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Self
from zoneinfo import ZoneInfo

import openai
import pytest

from naru.attributes import from_item, to_item
from naru.batch_input import read_plan
from naru.batch_queue import Message
from naru.ledger import Ledger
from naru.meter import Meters
from naru.sweeper import Sweeper
from tests.batches import assert_each_once, contents, line, rows_of, submit, wait
from tests.conftest import RunningStack, running_stack
from tests.meters import USD, all_meters
from tests.waiting import PATIENCE_S

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chaos")]

SEOUL = ZoneInfo("Asia/Seoul")
WORKER = "BatchWorkerFunction"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Leases of three seconds and short ranges: what takes minutes in production is over in seconds."""
    parameters = {"BatchLeaseSeconds": "2", "BatchRangeLines": "10"}
    with running_stack(tmp_path_factory.mktemp("chaos"), parameters=parameters) as running:
        yield running


class Trouble:
    """Kills a worker and delivers a message again, now and then, until it is left."""

    def __init__(self, stack: RunningStack, messages: list[Message], *, kills: int, seed: int) -> None:
        self._stack, self._messages, self._kills = stack, messages, kills
        self._rng = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.killed = self.repeated = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        sqs, url = self._stack.aws("sqs"), self._stack.gateway.stack.outputs["BatchQueueUrl"]
        pool = self._stack.gateway.pollers[WORKER].pool
        while not self._over.wait(self._rng.uniform(0.2, 0.7)):
            if self.repeated >= 20 * self._kills:
                return
            for message in self._rng.sample(self._messages, k=min(2, len(self._messages))):
                sqs.send_message(QueueUrl=url, MessageBody=message.text())
                self.repeated += 1
            if self.killed < self._kills:
                try:
                    pool.kill(in_flight=True)
                    self.killed += 1
                except LookupError:
                    continue


def test_every_line_has_one_result_whatever_happens(stack: RunningStack) -> None:
    """Results, counts and files are exact; the ledger is the provider's bill, and what may differ is marked."""
    count, kills = (2000, 25) if stack.long_tests else (60, 3)
    stack.model.reset_stats()
    stack.model.control(
        {
            "seed": 5,
            "latency": {"first_token_ms": 120},
            "rules": [
                {"match": {}, "probability": 0.1, "fault": {"name": "status", "status": 503}},
                {"match": {}, "probability": 0.1, "fault": {"name": "status", "status": 429, "retry_after": "1"}},
                {"match": {}, "probability": 0.02, "fault": {"name": "cut_after", "tokens": 2, "how": "reset"}},
            ],
        }
    )
    ids = [f"x{i}" for i in range(count)]
    with openai.OpenAI(base_url=stack.base_url, api_key=stack.new_api_key("chaos"), max_retries=2) as client:
        batch = submit(client, [line(custom_id, f"{custom_id} [[sim tokens=4]]") for custom_id in ids])
        wait(client, batch.id, until=lambda now: now.status == "in_progress")
        with Trouble(stack, range_messages(stack, batch.id), kills=kills, seed=11) as trouble:
            batch = wait(client, batch.id, patience_s=2400 if stack.long_tests else PATIENCE_S)
        assert trouble.killed >= min(2, kills)
        assert trouble.repeated >= 4
        assert batch.status == "completed", batch
        output, errors = contents(client, batch)
        assert_each_once(batch, ids, output, errors)
        assert errors == []
    asyncio.run(sweep(stack))
    assert_ledger_is_the_bill(stack, batch.id, {part["response"]["request_id"] for part in output})
    for meter in all_meters(stack.aws("dynamodb"), stack.meter_table):
        assert meter.leases() == []
    # One end: a second finisher changes nothing and tells nobody.
    log = stack.gateway.pollers[WORKER].pool.log.read_text()
    assert log.count('"message":"batch ended"') == 1


def range_messages(stack: RunningStack, batch_id: str) -> list[Message]:
    """The messages with which the batch was sent to the workers."""
    outputs = stack.gateway.stack.outputs
    key_id, s3 = key_of(stack, batch_id), stack.aws("s3")
    plan = s3.get_object(Bucket=outputs["FilesBucket"], Key=f"31-days/{key_id}/{batch_id}/plan.json")["Body"].read()
    return [Message("run", key_id, batch_id, 0, of) for of in read_plan(plan)]


def key_of(stack: RunningStack, batch_id: str) -> str:
    """Whose batch it is."""
    items = stack.aws("dynamodb").scan(TableName=stack.gateway.stack.outputs["BatchTable"])["Items"]
    batches = [item for item in map(from_item, items) if item["entry"] == batch_id]
    (key_id,) = {str(item["shelf"]).removeprefix("batches#") for item in batches if item["shelf"] != "open"}
    return key_id


async def sweep(stack: RunningStack) -> Any:
    """What the sweeper does when the leases of the dead are old enough: here they are at once."""
    dynamodb = stack.aws("dynamodb")
    meters = Meters(dynamodb, stack.meter_table, SEOUL, organisation_budget_pico_usd=500 * USD)
    sweeper = Sweeper(dynamodb, stack.meter_table, meters, Ledger(dynamodb, stack.ledger_table, SEOUL))
    return await sweeper.sweep(now_ms=time.time_ns() // 10**6 + 1000, lease_life_ms=0)


def assert_ledger_is_the_bill(stack: RunningStack, batch_id: str, answered: set[str]) -> None:
    """Each request's row has the tokens that the provider billed for it, or says that it may have billed more."""
    billed: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for bill in stack.model.stats()["billed"]:
        tokens = billed[str(bill["client_request_id"])]
        tokens[0] += bill["prompt_tokens"]
        tokens[1] += bill["completion_tokens"]
    rows = rows_of(stack)
    assert answered <= set(rows)
    assert set(billed) <= set(rows)
    unmarked = 0
    for request_id, row in rows.items():
        if not row.maybe_billed_pico_usd:
            assert billed[request_id] == [row.usage.prompt_tokens, row.usage.completion_tokens], row
            unmarked += 1
        assert row.batch_id == batch_id, row
    assert unmarked >= 0.8 * len(answered)
    lost = {row.request_id for row in rows.values() if row.outcome == "completed"} - answered
    # A worker that died between the row and the result: paid for, and run again under another id.
    assert len(lost) <= 25


def test_a_batch_whose_time_is_over_ends_as_expired(stack: RunningStack) -> None:
    """What was answered by then is there; the rest is given back as batch_expired."""
    stack.model.clear_control()
    stack.model.reset_stats()
    stack.model.control({"latency": {"first_token_ms": 500}})
    with openai.OpenAI(base_url=stack.base_url, api_key=stack.new_api_key("late"), max_retries=0) as client:
        batch = submit(client, [line(f"e{i}", f"{i} [[sim tokens=2]]") for i in range(100)])
        wait(client, batch.id, until=lambda _: len(stack.model.stats()["billed"]) >= 3)
        table, shelf = stack.gateway.stack.outputs["BatchTable"], f"batches#{key_of(stack, batch.id)}"
        stack.aws("dynamodb").update_item(
            TableName=table,
            Key=to_item({"shelf": shelf, "entry": batch.id}),
            UpdateExpression="SET expires_at = :now",
            ExpressionAttributeValues=to_item({":now": int(time.time())}),
        )
        batch = wait(client, batch.id)
        assert (batch.status, batch.expired_at is not None) == ("expired", True)
        output, errors = contents(client, batch)
    assert_each_once(batch, [f"e{i}" for i in range(100)], output, errors)
    assert {part["error"]["code"] for part in errors} == {"batch_expired"}
    assert len(output) == len(stack.model.stats()["billed"])
