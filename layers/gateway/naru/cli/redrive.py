"""``naru batch redrive``: dead letters go back to the workers, with AWS credentials.

A message lies in the dead-letter queue when its worker died of it again and again. What it was about is in the table,
so it can be given again at any time: lines that have a result are not run again.
"""

from __future__ import annotations

import argparse
from typing import Any

from naru.cli.aws import call_aws, find_stack
from naru.cli.output import note

_AT_ONCE = 10


def run(arguments: argparse.Namespace) -> None:
    """Moves all messages of the dead-letter queue. Each is sent before it is removed, so that none is lost."""
    stack = find_stack(arguments)
    sqs = stack.client("sqs")
    name = stack.output("BatchDeadLetterQueueArn").rsplit(":", 1)[-1]
    dead, queue = call_aws(sqs.get_queue_url, QueueName=name)["QueueUrl"], stack.output("BatchQueueUrl")
    moved = 0
    while messages := call_aws(sqs.receive_message, QueueUrl=dead, MaxNumberOfMessages=_AT_ONCE, WaitTimeSeconds=1).get(
        "Messages"
    ):
        for message in messages:
            _move(sqs, message, dead, queue)
        moved += len(messages)
    note(f"{moved} message{'' if moved == 1 else 's'} given to the workers again." if moved else "There are none.")


def _move(sqs: Any, message: dict[str, Any], dead: str, queue: str) -> None:
    call_aws(sqs.send_message, QueueUrl=queue, MessageBody=message["Body"])
    call_aws(sqs.delete_message, QueueUrl=dead, ReceiptHandle=message["ReceiptHandle"])
