"""What a failed call means: what the client is told, where it may be tried again, whether it may have been billed.

Whether a call may be repeated is decided by one question: *could the provider have billed it?* What surely was not
billed may go to the same deployment again; what may have been goes elsewhere or nowhere.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from naru.catalog import Deployment
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
from naru.fault_rules import FaultKind
from naru.faults import ProviderFault, is_ordinary

Again = Literal["same", "elsewhere", "larger", "never"]
"""``larger``: where there is more context."""

_OPENAI_CODES: Mapping[FaultKind, str] = {
    "context_length": "context_length_exceeded",
    "content_filter": "content_filter",
}
_REQUEST_STATUSES = frozenset({400, 413, 415, 422})
_UNNAMED_WAIT_S = 5.0
"""What a client is told to wait where a provider that is at its limit named no time."""

# What the operator is told to do. The client is told nothing of the gateway's accounts.
_ADVICE: Mapping[FaultKind, str] = {
    "model": "The provider has no such model, or no longer. Check upstream_model and base_url in the catalog.",
    "region": "The provider refuses calls from this region. Use another region, or another provider.",
    "access": "The gateway's account is not approved for this model. Request access in the provider's console.",
    "feature": "The model lacks a capability that the catalog gives it. Correct the deployment's capabilities.",
    "address": "Check base_url in the catalog: redirects are not followed.",
    "credit": "Top up the account with the provider, or raise its spending limit.",
    "suspended": "The provider has disabled the account, project or key. Ask it why.",
    "permission": "The provider does not permit this call. Check the key's permissions, its IP allow list and the project.",
    "terms": "Accept the terms, or finish the verification, in the provider's console.",
}


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
    of_account: bool = False
    """Whether the provider refuses the gateway's key or account, and with it every deployment there."""
    unreachable: bool = False
    """Whether no connection to the provider could be made."""
    was_called: bool = True
    """False where it was known without a call that there would be no answer."""

    def of_a_fallback(self) -> None:
        """What a fallback does not take may well be right for the model that was asked for, or for the next one. That
        its filter objects to is objected to.
        """
        if isinstance(self.error, ProviderRejectedError) and not self.is_filtered:
            self.misfit = True
            self.again = "elsewhere" if self.again == "never" else self.again

    @property
    def is_of_provider(self) -> bool:
        """Whether it says something about all of the provider's deployments, so that another provider is asked first."""
        return self.kind == "failure" or (self.of_account and self.again != "same")

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
    log = dict(_what_broke(error))
    match error:
        case httpx.ConnectTimeout() | httpx.PoolTimeout() | httpx.ConnectError() | httpx.WriteError():
            # Nothing, or not all of it, was sent: there is nothing that could be billed.
            return AttemptFailedError(
                result="connect",
                error=UpstreamUnavailableError(
                    f"The provider of {deployment.name} cannot be reached at the moment. Try again later.", log=log
                ),
                again="same",
                # No free connection of ours, or a kept one that broke, says nothing about the provider.
                unreachable=isinstance(error, httpx.ConnectError | httpx.ConnectTimeout),
            )
        case TimeoutError() | httpx.TimeoutException():
            return AttemptFailedError(
                result="timeout",
                error=UpstreamTimeoutError(
                    f"The provider of {deployment.name} did not answer in time. Ask for fewer tokens, or stream.",
                    log=log,
                ),
                again="elsewhere",
                maybe_billed=True,
            )
        case httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | httpx.ProxyError():
            misconfigured = UpstreamMisconfiguredError(
                f"The gateway cannot call the provider of {deployment.name}. Contact your administrator.",
                log=log | {"advice": "Check base_url in the catalog."},
            )
            return AttemptFailedError(result="misconfigured", error=misconfigured, again="elsewhere")
        case _:
            return AttemptFailedError(
                result="reset",
                error=UpstreamUnavailableError(
                    f"The provider of {deployment.name} broke the connection. Try again later.", log=log
                ),
                again="elsewhere",
                maybe_billed=True,
            )


def fault_failure(deployment: Deployment, fault: ProviderFault) -> AttemptFailedError:
    """The failure of a call that the provider answered with an error."""
    status = fault.status
    result = str(status) if status != httpx.codes.OK else f"200 {fault.kind}"
    match fault.party:
        case "request":
            return _rejected(fault, result)
        case "deployment":
            return AttemptFailedError(result, _not_offered(deployment, fault), again="elsewhere")
        case "account":
            return AttemptFailedError(result, _refused_account(deployment, fault), again="elsewhere", of_account=True)
        case "load":
            return _busy(deployment, fault, result)
        case "provider":
            # An error inside a 200 comes from a provider that had accepted the request, and may have begun to count.
            maybe_billed = status in {200, 499, 504} or fault.kind == "timeout"
            return AttemptFailedError(
                result,
                _ill(deployment, fault),
                again="elsewhere" if maybe_billed else "same",
                maybe_billed=maybe_billed,
                retry_after_s=fault.retry_after_s,
            )


def protocol_failure(deployment: Deployment, what: str) -> AttemptFailedError:
    """``what`` is logged: it must not quote the provider."""
    return AttemptFailedError(
        result="invalid_answer",
        error=UpstreamProtocolError(
            f"The provider of {deployment.name} sent something that is not an answer. Try again later.",
            log={"reason": what},
        ),
        again="elsewhere",
        maybe_billed=True,
    )


def refused_key(deployment: Deployment, *, log: Mapping[str, Any]) -> UpstreamRefusedKeyError:
    return UpstreamRefusedKeyError(
        f"The provider of {deployment.name} does not accept the gateway's own key or account, or there is no key. "
        "Your API key is fine. Contact your administrator.",
        log=dict(log),
    )


def how_to_set(secret_id: str, field: str) -> str:
    """What an operator does about a provider's key."""
    return (
        f"Run 'naru providers set {field}', which puts the key into the field {field!r} of the secret {secret_id}. "
        "It is read again within seconds. On your own machine, set the environment variable that 'make run' names."
    )


def _rejected(fault: ProviderFault, result: str) -> AttemptFailedError:
    code = fault.code
    if code is None or code.isdecimal():
        # NAVER's numbers say nothing to a client that looks for OpenAI's words.
        code = _OPENAI_CODES.get(fault.kind, code)
    error = ProviderRejectedError(
        fault.message,
        status=fault.status if fault.status in _REQUEST_STATUSES else 400,
        param=fault.param,
        code=code,
        # A provider may call an error by the client's own words.
        recorded_code=code if code is None or is_ordinary(code) else "provider_rejected",
        log=dict(fault.facts),
    )
    again: Again = {"context_length": "larger", "unsuited": "elsewhere"}.get(fault.kind, "never")  # type: ignore[assignment]
    return AttemptFailedError(result, error, again, is_filtered=fault.kind == "content_filter")


def _not_offered(deployment: Deployment, fault: ProviderFault) -> NaruError:
    sentence = {
        "model": f"The provider of {deployment.name} does not offer this model to the gateway.",
        "region": f"The provider of {deployment.name} does not serve the gateway's region.",
        "access": f"The provider of {deployment.name} does not offer this model to the gateway.",
        "feature": f"{deployment.name} does not support something that this request uses.",
    }.get(fault.kind, f"The provider of {deployment.name} answered with {fault.status}.")
    error = UpstreamMisconfiguredError(
        f"{sentence} Choose another model, or contact your administrator.", log=_log(fault)
    )
    # One that lacks a feature serves the next request, so a batch fails this line and goes on.
    if fault.kind == "feature":
        error.waits_for = None
    return error


def _refused_account(deployment: Deployment, fault: ProviderFault) -> NaruError:
    if fault.kind == "credit":
        error = UpstreamUnavailableError(
            f"The gateway's account with the provider of {deployment.name} cannot be used at the moment. Contact your "
            "administrator.",
            code="upstream_quota_exhausted",
            log=_log(fault),
        )
        error.waits_for = "operator"
        return error
    return refused_key(deployment, log=_log(fault))


def _busy(deployment: Deployment, fault: ProviderFault, result: str) -> AttemptFailedError:
    if fault.kind == "too_large":
        error: NaruError = ProviderRejectedError(
            f"The request is larger than {deployment.name} takes at once. Shorten it, or lower max_tokens.",
            status=413,
            code="request_too_large",
            recorded_code="request_too_large",
            log=_log(fault),
        )
        return AttemptFailedError(result, error, again="elsewhere")
    is_limit = fault.kind == "rate_limited" or fault.status == httpx.codes.TOO_MANY_REQUESTS
    kind = UpstreamRateLimitedError if is_limit else UpstreamUnavailableError
    error = kind(
        f"The provider of {deployment.name} is rate-limiting the gateway, and was when it was asked again. Try again "
        "after the time in Retry-After.",
        retry_after_s=_UNNAMED_WAIT_S if fault.retry_after_s is None and is_limit else fault.retry_after_s,
        log=_log(fault),
    )
    error.waits_for = "load"
    return AttemptFailedError(result, error, again="same", retry_after_s=fault.retry_after_s)


def _ill(deployment: Deployment, fault: ProviderFault) -> NaruError:
    if fault.kind == "timeout":
        return UpstreamTimeoutError(
            f"The provider of {deployment.name} did not finish in time. Ask for fewer tokens, or stream.",
            log=_log(fault),
        )
    return UpstreamUnavailableError(
        f"The provider of {deployment.name} returned a server error. Try again later.",
        retry_after_s=fault.retry_after_s,
        log=_log(fault),
    )


def _log(fault: ProviderFault) -> dict[str, Any]:
    return dict(fault.facts) | ({"advice": _ADVICE[fault.kind]} if fault.kind in _ADVICE else {})


def _what_broke(error: BaseException) -> Iterator[tuple[str, str]]:
    """A broken connection by the names of its errors: their texts may quote bytes of the answer."""
    yield "reason", type(error).__name__
    causes: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < 8:
        reason = getattr(cause, "reason", None)
        if isinstance(cause, ssl.SSLError) and isinstance(reason, str):
            causes.append(reason)
        elif isinstance(cause, OSError) and cause.errno is not None:
            causes.append(errno.errorcode.get(cause.errno, f"{type(cause).__name__} {cause.errno}"))
        cause = cause.__cause__ or cause.__context__
    if causes:
        yield "cause", ", ".join(dict.fromkeys(causes))
