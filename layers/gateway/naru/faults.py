"""Whose fault a provider's error is, and what of it may be logged.

A provider may repeat the client's request in its error, in any field. So a phrase decides only where a sentence of the
provider's may begin, and only if the request does not say the same; and of the texts nothing is logged but labels that
are made of an API's own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from naru.dialects.error_bodies import ProviderError, clean
from naru.fault_rules import (
    PARTY_OF,
    PER_DAY,
    PRECISE,
    PRECISE_PARAMETERS,
    QUALIFIED,
    SAYS_LITTLE,
    VAGUE,
    WORDS,
    FaultKind,
    Party,
    Rule,
    kind_of_status,
    phrases,
    squeezed,
)

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# As providers make them: req_…, a UUID, so many hexadecimal or decimal digits.
_REQUEST_ID = re.compile(
    r"(?:req|gen|chatcmpl)[_-][0-9A-Za-z-]{16,48}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{16,40}(?:-[A-Z]{3})?"
    r"|20\d{12,32}[0-9A-Za-z]{0,10}"
)
_NOT_WORDS = bytes(byte for byte in range(128) if not chr(byte).isalnum())


@dataclass(frozen=True, slots=True)
class ProviderFault:
    """What a provider's error means. ``message``, ``code`` and ``param`` are the provider's, for the client alone:
    they may repeat what it wrote. ``facts`` may be logged.
    """

    kind: FaultKind
    rule: str
    """The row of the table that decided."""
    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    facts: tuple[tuple[str, Any], ...] = ()

    @property
    def party(self) -> Party:
        """Whose fault it is."""
        return PARTY_OF[self.kind]

    @property
    def is_known(self) -> bool:
        """Whether a label or a phrase decided, and not the status alone."""
        return self.rule != f"status-{self.status}"


def judge(error: ProviderError, *, sent: bytes = b"") -> ProviderFault:
    """What an error means; ``sent`` is the body of the request that it answers."""
    request = _Request(sent)
    rule, said_by = _rule(error, request)
    resets_s = error.reset_s if rule.kind == "rate_limited" else None
    told = said_by
    if PARTY_OF[rule.kind] == "request":
        # What a wrapper passes on says more than the wrapper, unless it is what the client wrote.
        inner = [layer for layer in _layers(error) if layer.message and not request.says(layer.message)]
        told = inner[-1] if inner else error
    message = clean(told.message) or clean(error.message)
    return ProviderFault(
        kind=rule.kind,
        rule=rule.id,
        status=error.status,
        message=message or f"The provider answered with status {error.status} and no message.",
        code=told.code or error.code,
        param=told.param or error.param,
        retry_after_s=next((s for s in (error.retry_after_s, said_by.retry_after_s, resets_s) if s is not None), None),
        facts=tuple(_facts(error, rule, request)),
    )


def is_ordinary(label: str) -> bool:
    """Whether a label is made of the words of an API, so that it tells nothing that a user wrote."""
    known = squeezed(label)
    if known in PRECISE or known in PRECISE_PARAMETERS or known in VAGUE:
        return True
    if label.isdecimal():
        return len(label) == 3 and label[0] in "2345"
    words = _WORD.findall(label)
    return bool(words) and len(label) <= 64 and all(word.lower() in WORDS for word in words)


# ── Deciding ────────────────────────────────────────────────────────────────────────────────────────────


def _rule(error: ProviderError, request: _Request) -> tuple[Rule, ProviderError]:
    """The row that decides, and the error that it decides by: this one, or one that is wrapped in it."""
    text = error.message.lower()
    labels = [squeezed(label) for label in error.labels]
    if (rule := _qualified(labels, text) or _first(labels, PRECISE)) is not None:
        return rule, error
    parameter = _first(labels, PRECISE_PARAMETERS)
    found = [phrase for phrase in _said(text) if not request.says(phrase.words)]
    if found and found[0].position == 0:
        return found[0].rule, error
    if parameter is not None:
        return parameter, error
    if not error.param:
        for wrapped in list(_layers(error))[1:]:
            if (rule := _of_wrapped(wrapped, request)) is not None:
                return rule, wrapped
        if found:
            return found[0].rule, error
    return _vague(error.status, labels), error


def _of_wrapped(error: ProviderError, request: _Request) -> Rule | None:
    """As :func:`_rule` for an error inside another one, which a client may have written: believed where it did not."""
    labels = [label for label in map(squeezed, error.labels) if not request.says(label)]
    text = error.message.lower()
    if (rule := _qualified(labels, text) or _first(labels, PRECISE)) is not None:
        return rule
    for phrase in _said(text):
        if not request.says(phrase.words):
            return phrase.rule
    if (rule := _first(labels, PRECISE_PARAMETERS)) is not None:
        return rule
    rule = _vague(200, labels)
    return rule if rule.id != "status-200" else None


def _vague(status: int, labels: list[str]) -> Rule:
    if status in SAYS_LITTLE:
        for label in labels:
            rule = VAGUE.get(label)
            # A wrapper that failed by itself says server_error or 500 about a request that may be right.
            if rule is not None and not (rule.kind == "parameter" and status >= 500):
                return rule
            inner = int(label[:3]) if re.fullmatch(r"[45]\d\d(\d\d)?", label) else status
            if inner not in SAYS_LITTLE or (status == 200 and inner != 200):
                return Rule(f"status-{status}-{inner}", kind_of_status(inner))
    return Rule(f"status-{status}", kind_of_status(status))


def _first(labels: list[str], rules: dict[str, Rule]) -> Rule | None:
    return next((rules[label] for label in labels if label in rules), None)


def _qualified(labels: list[str], text: str) -> Rule | None:
    if any("perday" in label and label.startswith("generate") for label in labels):
        return PER_DAY
    for rule in QUALIFIED:
        if rule.phrase is not None and rule.phrase.search(text) and not rule.labels.isdisjoint(labels):
            return rule
    return None


@dataclass(frozen=True, slots=True)
class _Phrase:
    rule: Rule
    position: int
    words: str


def _said(text: str) -> list[_Phrase]:
    """The phrases that a text says, those that stand at its beginning first."""
    found = [
        _Phrase(rule, match.start("said"), match["said"])
        for rule in phrases()
        if rule.phrase is not None and (match := rule.phrase.search(text))
    ]
    return sorted(found, key=lambda phrase: phrase.position != 0)


def _layers(error: ProviderError) -> Iterator[ProviderError]:
    layer: ProviderError | None = error
    while layer is not None:
        yield layer
        layer = layer.wrapped


@dataclass(slots=True)
class _Request:
    """The body of a request, looked through when it is first needed, and once."""

    body: bytes
    _seen: bytes | None = None

    def says(self, words: str) -> bool:
        """Whether it says the same, whatever stands between the letters."""
        if self._seen is None:
            self._seen = _letters(self.body)
        return _letters(words.encode("utf-8", "replace")) in self._seen


def _letters(text: bytes) -> bytes:
    for escape in (b"\\n", b"\\r", b"\\t"):
        text = text.replace(escape, b"")
    return text.lower().translate(None, _NOT_WORDS)


# ── Logging ─────────────────────────────────────────────────────────────────────────────────────────────


def _facts(error: ProviderError, rule: Rule, request: _Request) -> Iterator[tuple[str, Any]]:
    yield "fault", PARTY_OF[rule.kind]
    yield "fault_kind", rule.kind
    yield "fault_rule", rule.id
    yield "provider_status", error.status
    labels = [label for layer in _layers(error) for label in layer.labels]
    if ordinary := [label for label in dict.fromkeys(labels) if is_ordinary(label)]:
        yield "provider_codes", ordinary
    if withheld := len(set(labels) - set(ordinary)):
        yield "provider_codes_withheld", withheld
    if (request_id := _request_id(error, request)) is not None:
        yield "provider_request_id", request_id
    yield "message_chars", error.message_chars


def _request_id(error: ProviderError, request: _Request) -> str | None:
    for layer in _layers(error):
        found = layer.request_id
        if found is not None and _REQUEST_ID.fullmatch(found):
            tail = found.split("_", 1)[-1]
            return None if request.says(tail) or _is_text(tail) else found
    return None


def _is_text(digits: str) -> bool:
    """Whether an id is somebody's words in hexadecimal or in base64, and not random."""
    import base64
    import binascii

    for decode in (binascii.unhexlify, lambda text: base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))):
        try:
            text = decode(digits.replace("-", "")).decode()
        except (ValueError, UnicodeDecodeError):
            continue
        if text.isprintable():
            return True
    return False
