"""How each kind of provider wants a request, and how it answers and fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from naru.catalog import Deployment
    from naru.dialects.error_bodies import ProviderError

DialectName = Literal["openai", "clovastudio"]


class Dialect(Protocol):
    """The modules of this package."""

    def request_body(self, body: Mapping[str, Any], *, deployment: Deployment, output_limit: int) -> dict[str, Any]:
        """A new body for the provider, from a client's; ``output_limit`` is the most tokens a choice may have.

        Raises :class:`~naru.errors.InvalidRequestError` for what the deployment cannot do as asked.
        """

    def answer(self, payload: dict[str, Any]) -> dict[str, Any]:
        """An answer, or one chunk of a stream, in OpenAI's shape: ``payload`` itself when it has that already, so that
        the bytes it came in can be passed on.
        """

    def error(self, status: int, headers: Mapping[str, str], payload: Any) -> ProviderError:
        """What an error answer says; ``payload`` is parsed JSON, text, bytes or None. For an error inside a stream,
        ``status`` is the stream's own.
        """


def for_name(name: DialectName) -> Dialect:
    """The dialect of that name, imported when it is first needed."""
    if name == "clovastudio":
        from naru.dialects import clovastudio

        return clovastudio
    from naru.dialects import openai

    return openai
