"""Everything that Naru refuses or fails at, as one tree.

NaruError                          what a client is told: HTTP status, OpenAI type, code, param, advice
├── InvalidRequestError       400  the request is not what the API takes; ``param`` names the field
│   ├── RequestTooLargeError  413
│   ├── UnsupportedMediaTypeError  415  the body is compressed or encoded in a way that is not read here
│   ├── ModelNotFoundError    404
│   ├── ApiKeyNotFoundError   404
│   ├── NotFoundError         404  no such file or batch, or not this key's
│   ├── ConflictError         409  it makes sense, but not in the state that things are in
│   │   └── IdempotencyKeyReusedError  the key came before, with another body
│   ├── IdempotencyKeyInUseError  409  the first request with the key is still being answered
│   ├── UnknownPathError      404
│   └── MethodNotAllowedError 405
├── AuthenticationError       401  no key, or not one of ours
├── PermissionDeniedError     403  the key is known and may not do this
├── RateLimitedError          429  the key's, the user's or the organisation's limit per minute or at once
├── QuotaExceededError        429  a monthly budget is spent
├── UpstreamError             5xx  the provider failed, and what could be tried has been tried
│   ├── UpstreamRefusedKeyError      502  the provider refuses our key or account, or there is no key: the operator's to mend
│   ├── UpstreamMisconfiguredError   502  the provider does not offer the model here, or the path of the catalog is wrong
│   ├── UpstreamRateLimitedError     429
│   ├── UpstreamTimeoutError         504
│   ├── UpstreamUnavailableError     503  could not be reached, or answered 5xx
│   └── UpstreamProtocolError        502  answered something that is not an answer
├── ProviderRejectedError     4xx  the provider's own verdict on the request, passed on
└── StoreUnavailableError     503  DynamoDB or Secrets Manager cannot be reached, or was reached too late

CatalogError                       the operator's file is wrong; the message names the key in it
SettingsError                      an environment variable is missing or wrong; the message names it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

WaitsFor = Literal["operator", "load"]


class NaruError(Exception):
    """A failure with an answer: what the client is told, and nothing else.

    ``log`` holds facts for the operator that must not reach the client.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    should_retry: bool | None = None
    """What ``x-should-retry`` says; OpenAI's SDKs obey it. None leaves it to the status."""
    waits_for: WaitsFor | None = None
    """What a batch waits for before it sends the request again: nothing is wrong with it, and nothing was billed."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        log: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.log = log or {}
        self.code = code or self.code
        self.headers: dict[str, str] = {}
        """What the answer says beside the error: the state of the limits."""

    @property
    def http_status(self) -> int:
        """The status of the answer."""
        return self.status

    @property
    def recorded_code(self) -> str | None:
        """The code for the ledger and the log."""
        return self.code

    def body(self) -> dict[str, Any]:
        """OpenAI's error object, with all four of its keys."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequestError(NaruError):
    status = 400
    type = "invalid_request_error"


class RequestTooLargeError(InvalidRequestError):
    status = 413
    code = "request_too_large"


class UnsupportedMediaTypeError(InvalidRequestError):
    status = 415
    code = "unsupported_media_type"


class ModelNotFoundError(InvalidRequestError):
    status = 404
    code = "model_not_found"


class ApiKeyNotFoundError(InvalidRequestError):
    status = 404
    code = "api_key_not_found"


class NotFoundError(InvalidRequestError):
    status = 404
    code = "not_found"


class ConflictError(InvalidRequestError):
    """``code`` says what is in the way; trying again does not help."""

    status = 409
    should_retry = False


class IdempotencyKeyReusedError(ConflictError):
    code = "idempotency_key_reused"


class IdempotencyKeyInUseError(InvalidRequestError):
    status = 409
    code = "idempotency_key_in_use"
    should_retry = True


class UnknownPathError(InvalidRequestError):
    status = 404
    code = "unknown_url"


class MethodNotAllowedError(InvalidRequestError):
    """``allow`` are the methods that the path has."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: Sequence[str]) -> None:
        super().__init__(message)
        self.headers["Allow"] = ", ".join(allow)


class AuthenticationError(NaruError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class PermissionDeniedError(NaruError):
    status = 403
    type = "invalid_request_error"
    code = "permission_denied"


class RateLimitedError(NaruError):
    """``hopeless`` is for a request that no waiting makes fit."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float | None = None, hopeless: bool = False) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        if hopeless:
            self.should_retry = False


class QuotaExceededError(NaruError):
    """``retry_after_s`` is when waiting may help: soon, if requests in flight hold what is missing; else with the next
    month; None if it never does.
    """

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"
    should_retry: bool | None = False


class UpstreamError(NaruError):
    """The gateway's last word: its own retries are spent, so SDKs are told not to add theirs."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"
    should_retry = False


class UpstreamRefusedKeyError(UpstreamError):
    code = "upstream_key_refused"
    waits_for: WaitsFor | None = "operator"


class UpstreamMisconfiguredError(UpstreamError):
    code = "upstream_misconfigured"
    waits_for: WaitsFor | None = "operator"


class UpstreamRateLimitedError(UpstreamError):
    status = 429
    type = "rate_limit_error"
    code = "upstream_rate_limited"


class UpstreamTimeoutError(UpstreamError):
    status = 504
    code = "upstream_timeout"


class UpstreamUnavailableError(UpstreamError):
    status = 503
    code = "upstream_unavailable"


class UpstreamProtocolError(UpstreamError):
    code = "upstream_invalid_answer"


class ProviderRejectedError(NaruError):
    """A 4xx in which the provider judges the request itself; status and words are the provider's."""

    type = "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        param: str | None = None,
        code: str | None = None,
        recorded_code: str | None = None,
        log: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, param=param, code=code, log=log)
        self._status = status
        self._recorded_code = recorded_code

    @property
    def http_status(self) -> int:
        return self._status

    @property
    def recorded_code(self) -> str | None:
        return self._recorded_code


class StoreUnavailableError(NaruError):
    """Fails closed: without the store nothing can be admitted, so nothing is sent upstream."""

    status = 503
    code = "store_unavailable"
    should_retry = True


class CatalogError(Exception):
    """The catalog cannot be used; the message names the key and says what is expected there."""


class SettingsError(Exception):
    """The environment cannot be used; the message names the variable and says what is expected."""
