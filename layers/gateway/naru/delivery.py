"""How messages leave: a topic of SNS, a mail by SES, a metric for CloudWatch's alarms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_sns.client import SNSClient

_SUBJECT_LIMIT = 100
_MESSAGE_BYTES = 250_000  # of the 262,144 that SNS takes


class NotDeliveredError(Exception):
    """Nobody knows of it yet; the message says why. Try again."""


class Topic:
    """A topic; its client is made when it is first needed."""

    def __init__(self, new_client: Callable[[], SNSClient], arn: str) -> None:
        self._new_client = new_client
        self._arn = arn
        self._made: SNSClient | None = None

    def publish(self, subject: str, message: str) -> None:
        """Tells all subscribers. Blocks. Raises :class:`NotDeliveredError`; then it may have been told all the same."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if self._made is None:
                self._made = self._new_client()
            self._made.publish(TopicArn=self._arn, Subject=ascii_line(subject), Message=_cut(message))
        except (BotoCoreError, ClientError) as error:
            raise NotDeliveredError(f"SNS: {type(error).__name__}: {error}") from error


class Mailer:
    """Mail by SES."""

    def __init__(self, new_client: Callable[[], object], sender: str, recipients: Sequence[str]) -> None:
        self._new_client = new_client
        self._sender = sender
        self._recipients = list(recipients)

    @property
    def is_on(self) -> bool:
        """Whether the operator has named a sender and somebody to send to."""
        return bool(self._sender and self._recipients)

    def send(self, subject: str, text: str, html: str) -> None:
        """One mail to all recipients. Blocks. Raises :class:`NotDeliveredError`."""
        from botocore.exceptions import BotoCoreError, ClientError

        def content(data: str) -> dict[str, str]:
            return {"Data": data, "Charset": "UTF-8"}

        try:
            client = self._new_client()
            client.send_email(  # type: ignore[attr-defined]
                FromEmailAddress=self._sender,
                Destination={"ToAddresses": self._recipients},
                Content={
                    "Simple": {"Subject": content(subject), "Body": {"Text": content(text), "Html": content(html)}}
                },
            )
        except (BotoCoreError, ClientError) as error:
            raise NotDeliveredError(f"SES: {type(error).__name__}: {error}") from error


def ascii_line(subject: str) -> str:
    """A subject that SNS takes: a line of ASCII; other letters become question marks."""
    line = " ".join(subject.split()).encode("ascii", "replace").decode()
    return line[:_SUBJECT_LIMIT]


def _cut(message: str) -> str:
    encoded = message.encode()
    return message if len(encoded) <= _MESSAGE_BYTES else encoded[:_MESSAGE_BYTES].decode("utf-8", "ignore") + "\n…"
