"""What a failed call means: what the client is told, where it may be tried again, whether it may have been billed.

Whether a call may be repeated is decided by one question: *could the provider have billed it?* What surely was not
billed may go to the same deployment again; what may have been goes elsewhere or nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import httpx

from naru.catalog import Deployment
from naru.dialects import ProviderFault
from naru.errors import (
    NaruError,
    ProviderRejectedError,
    UpstreamMisconfiguredError,
    UpstreamProtocolError,
    UpstreamRateLimitedError,
    UpstreamRefusedKeyError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)

Again = Literal["same", "elsewhere", "larger", "never"]
"""``larger``: where there is more context."""

_OPENAI_CODES = {"context_length": "context_length_exceeded", "content_filter": "content_filter"}


@dataclass(eq=False)
class AttemptFailedError(Exception):
    """A call that brought no answer.

    ``result`` is its short name in the ledger, ``error`` what the client is told if nothing else can be tried,
    ``again`` where a repetition is allowed.
    """

    result: str
    error: NaruError
    again: Again
    maybe_billed: bool = False
    retry_after_s: float | None = None
    is_filtered: bool = False
    """Whether a content filter objected."""
    misfit: bool = False
    """Whether only this deployment's model cannot take the request: no word on the model that was asked for."""

    def of_a_fallback(self) -> None:
        """What a fallback does not take may well be right for the model that was asked for, or for the next one. That
        its filter objects to is objected to.
        """
        if isinstance(self.error, ProviderRejectedError) and not self.is_filtered:
            self.misfit = True
            self.again = "elsewhere" if self.again == "never" else self.again

    @property
    def kind(self) -> Literal["failure", "overload", "neutral"]:
        """What it says about the deployment: that it is ill, that it is busy, or nothing."""
        match self.error:
            case NaruError(code="upstream_quota_exhausted"):
                return "neutral"
            case UpstreamRateLimitedError():
                return "overload"
            case UpstreamTimeoutError() | UpstreamUnavailableError() | UpstreamProtocolError():
                return "failure"
            case _:
                return "neutral"


def transport_failure(deployment: Deployment, error: Exception) -> AttemptFailedError:
    match error:
        case httpx.ConnectTimeout() | httpx.PoolTimeout() | httpx.ConnectError() | httpx.WriteError():
            # Nothing, or not all of it, was sent: there is nothing that could be billed.
            return AttemptFailedError(
                result="connect",
                error=UpstreamUnavailableError(
                    f"The provider of {deployment.name} cannot be reached at the moment. Try again later.",
                    log={"reason": f"{type(error).__name__}: {error}"},
                ),
                again="same",
            )
        case TimeoutError() | httpx.TimeoutException():
            return AttemptFailedError(
                result="timeout",
                error=UpstreamTimeoutError(
                    f"The provider of {deployment.name} did not answer in time. Ask for fewer tokens, or stream.",
                    log={"reason": type(error).__name__},
                ),
                again="elsewhere",
                maybe_billed=True,
            )
        case httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | httpx.ProxyError():
            return AttemptFailedError(
                result="misconfigured",
                error=UpstreamMisconfiguredError(
                    f"The gateway cannot call the provider of {deployment.name}. Tell the operator.",
                    log={"reason": f"{type(error).__name__}: {error}", "advice": "Check base_url in the catalog."},
                ),
                again="elsewhere",
            )
        case _:
            return AttemptFailedError(
                result="reset",
                error=UpstreamUnavailableError(
                    f"The provider of {deployment.name} broke the connection. Try again later.",
                    log={"reason": f"{type(error).__name__}: {error}"},
                ),
                again="elsewhere",
                maybe_billed=True,
            )


def fault_failure(deployment: Deployment, fault: ProviderFault, *, status: int = 200) -> AttemptFailedError:
    # An error inside a 200 comes from a provider that had accepted the request, and may have begun to count.
    maybe_billed = status in {200, 504}
    result = str(status) if status != httpx.codes.OK else f"200 {fault.kind}"
    again: Again
    error: NaruError
    match fault.kind:
        case "parameter" | "context_length" | "content_filter" | "other" if 400 <= status < 500 or status == 200:
            shown = max(status, 400)
            code = fault.code
            if code is None or code.isdecimal():
                # NAVER's numbers say nothing to a client that looks for OpenAI's words.
                code = _OPENAI_CODES.get(fault.kind, code)
            error = ProviderRejectedError(fault.message, status=shown, param=fault.param, code=code)
            again = "larger" if fault.kind == "context_length" else "never"
            return AttemptFailedError(result, error, again, is_filtered=fault.kind == "content_filter")
        case "not_found":
            error = UpstreamMisconfiguredError(
                f"The provider of {deployment.name} does not know this model. Tell the operator.",
                log={"reason": fault.message, "advice": "Check upstream_model and base_url in the catalog."},
            )
            again = "elsewhere"
        case "quota":
            error = UpstreamUnavailableError(
                f"The gateway's account with the provider of {deployment.name} has no credit left. Tell the operator.",
                code="upstream_quota_exhausted",
                log={"reason": fault.message, "advice": "Top up the account with the provider."},
            )
            error.awaits_operator = True
            again = "elsewhere"
        case "rate_limited" | "overloaded":
            kind = UpstreamRateLimitedError if status == httpx.codes.TOO_MANY_REQUESTS else UpstreamUnavailableError
            error = kind(
                f"The provider of {deployment.name} is at its limit, and was when it was asked again. Try again later.",
                retry_after_s=fault.retry_after_s,
                log={"reason": fault.message},
            )
            again, maybe_billed = "same", False
        case "timeout":
            error = UpstreamTimeoutError(
                f"The provider of {deployment.name} did not finish in time. Ask for fewer tokens, or stream.",
                log={"reason": fault.message},
            )
            again, maybe_billed = "elsewhere", True
        case "key":
            # Inside a 200: the secret was not distrusted, but the operator must hear of it all the same.
            error = refused_key(deployment, reason=fault.message, advice=f"Check the field {deployment.at.secret!r}.")
            again = "elsewhere"
        case _ if status < 400 and status != httpx.codes.OK:
            error = UpstreamMisconfiguredError(
                f"The provider of {deployment.name} answered with {status}. Tell the operator.",
                log={
                    "reason": f"status {status}",
                    "advice": "Check base_url in the catalog: redirects are not followed.",
                },
            )
            again = "elsewhere"
        case _:
            error = UpstreamUnavailableError(
                f"The provider of {deployment.name} has trouble of its own. Try again later.",
                retry_after_s=fault.retry_after_s,
                log={"reason": fault.message},
            )
            again = "elsewhere" if maybe_billed else "same"
    return AttemptFailedError(result, error, again, maybe_billed=maybe_billed, retry_after_s=fault.retry_after_s)


def protocol_failure(deployment: Deployment, what: str) -> AttemptFailedError:
    return AttemptFailedError(
        result="invalid_answer",
        error=UpstreamProtocolError(
            f"The provider of {deployment.name} sent something that is not an answer. Try again later.",
            log={"reason": what},
        ),
        again="elsewhere",
        maybe_billed=True,
    )


def refused_key(deployment: Deployment, *, reason: str, advice: str) -> UpstreamRefusedKeyError:
    return UpstreamRefusedKeyError(
        f"The gateway cannot open the provider of {deployment.name}: its own provider key is missing or refused. "
        "Your API key is fine. Tell the operator.",
        log={"reason": reason, "advice": advice},
    )


def how_to_set(secret_id: str, field: str) -> str:
    """What an operator does about a provider's key."""
    return (
        f"Run 'naru providers set {field}', which puts the key into the field {field!r} of the secret {secret_id}. "
        "It is read again within seconds. On your own machine, set the environment variable that 'make run' names."
    )
