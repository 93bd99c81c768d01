"""The queue of work on batches, and the topic that hears of their ends. Calls block.

A message says what is to be done and never holds a prompt. It may come twice, and later than its batch: whoever takes it
looks at the table first. A message that is to be done later is sent anew with a delay, rather than given back: a message
that is received again and again ends in the dead-letter queue, which is for those that kill their workers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Literal

from naru.batch_progress import Range
from naru.errors import StoreUnavailableError
from naru.stored import reached
from naru.wire import compact_json

if TYPE_CHECKING:
    from mypy_boto3_sns.client import SNSClient
    from mypy_boto3_sqs.client import SQSClient

_MAX_DELAY_S = 900
_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class Message:
    """What is to be done with a batch; ``range`` is for ``run`` alone."""

    do: Literal["check", "run", "finish"]
    key_id: str
    batch_id: str
    generation: int = 0
    range: Range | None = None

    def text(self) -> str:
        said: dict[str, Any] = {"do": self.do, "key_id": self.key_id, "batch_id": self.batch_id}
        if self.generation:
            said["generation"] = self.generation
        if self.range is not None:
            said["range"] = astuple(self.range)
        return compact_json(said).decode()

    @classmethod
    def parse(cls, text: str) -> Message:
        """Raises ValueError for what is no message of ours."""
        try:
            said = json.loads(text)
            range_ = Range(*said["range"]) if "range" in said else None
            return cls(said["do"], said["key_id"], said["batch_id"], said.get("generation", 0), range_)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a message of Naru's: {error!r}") from error


class BatchQueue:
    """The queue."""

    def __init__(self, client: SQSClient, url: str) -> None:
        self._client = client
        self._url = url

    def send(self, messages: Sequence[Message], *, delay_s: float = 0.0) -> None:
        """Puts messages into the queue, ten at a time. Raises :class:`~naru.errors.StoreUnavailableError`; some of them
        may be there then.
        """
        delay = min(_MAX_DELAY_S, max(0, round(delay_s)))
        for begin in range(0, len(messages), _AT_ONCE):
            entries: list[Any] = [
                # Of several keys that wait, none waits for all that another one has submitted (SQS fair queues).
                {
                    "Id": str(i),
                    "MessageBody": message.text(),
                    "DelaySeconds": delay,
                    "MessageGroupId": message.key_id,
                }
                for i, message in enumerate(messages[begin : begin + _AT_ONCE])
            ]
            for _ in range(3):
                with reached(self._url):
                    answer = self._client.send_message_batch(QueueUrl=self._url, Entries=entries)
                failed = {failure["Id"] for failure in answer.get("Failed", [])}
                entries = [entry for entry in entries if entry["Id"] in failed]
                if not entries:
                    break
            else:
                raise StoreUnavailableError(
                    "The gateway cannot reach its queue at the moment. Try again shortly.", log={"queue": self._url}
                )

    def hide(self, receipts: Sequence[str], *, for_s: float) -> None:
        """Keeps messages from others for so long from now; those that are gone are passed over."""
        for begin in range(0, len(receipts), _AT_ONCE):
            entries: list[Any] = [
                {"Id": str(i), "ReceiptHandle": receipt, "VisibilityTimeout": max(0, round(for_s))}
                for i, receipt in enumerate(receipts[begin : begin + _AT_ONCE])
            ]
            with reached(self._url):
                self._client.change_message_visibility_batch(QueueUrl=self._url, Entries=entries)


class Notifier:
    """The topic."""

    def __init__(self, client: SNSClient, topic: str) -> None:
        self._client = client
        self._topic = topic

    def tell(self, batch: dict[str, Any]) -> None:
        """Publishes the end of a batch; ``batch`` is as the API shows it, and holds no prompt and no answer."""
        counts = batch["request_counts"]
        subject = f"Naru: {batch['id'][:40]} {batch['status']}, {counts['completed']} of {counts['total']}"
        with reached(self._topic):
            self._client.publish(
                TopicArn=self._topic,
                Subject=subject[:100],
                Message=json.dumps(batch, ensure_ascii=False, indent=1),
                MessageAttributes={"status": {"DataType": "String", "StringValue": batch["status"]}},
            )
