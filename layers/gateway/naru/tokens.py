"""Tokens without a tokenizer: a bound that is never too low, and an estimate for usage that nobody reported.

**Why bytes bound tokens.** A byte-level BPE (cl100k, o200k, HyperCLOVA X) starts from single bytes and only ever
merges them; a SentencePiece model with byte fallback (Gemini) spends at most one token per byte of a character that it
does not know. Neither can make more tokens than there are UTF-8 bytes. What can is text that the tokenizer rewrites
first: Claude's last published tokenizer applied NFKC, in which one character of 3 bytes can become 18 characters of 33.
So where no tokenizer is published, the larger of the text and a bound on its normal forms counts. Normalizing the whole
text would be exact and quadratic: see :func:`_normalized_bytes`. What a provider adds around text - role
markers, separators, a dummy prefix - is covered by constants several times larger than any published figure. JSON
counts with everything outside ASCII escaped, since some chat templates render tools that way.

**What has no bound:** search results that a provider fetches, and the pages of a file; no dialect lets those pass. Nor
has a part of a kind that is not known here, or a film or document in an image's place: a short link may be an hour's
film (see :func:`naru.charges.is_one_image`). A caller may lower a bound to the deployment's context window: what does not fit there is refused, not billed.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from naru import canonical, charges

if TYPE_CHECKING:
    from naru.catalog import Tokenizer

# Published: 3 to 4 tokens a message, 1 a name, 3 a reply (OpenAI cookbook, "How to count tokens with tiktoken").
_REQUEST_BOUND = 64
_MESSAGE_BOUND = 16
_PART_BOUND = 8
_TOOL_CALL_BOUND = 32
# Published: Claude adds up to 530 for the first tool (Anthropic, "Tool use", pricing), OpenAI about 20 a function.
_FIRST_TOOL_BOUND = 1_024
_TOOL_BOUND = 64

# More than any context window, so that the window is what is set aside.
_NO_BOUND = 10**9

_REQUEST_ESTIMATE = 3
_MESSAGE_ESTIMATE = 4
_LOW_DETAIL_ESTIMATE = 85  # GPT-4o and 4.1

# Top-level fields that never reach the prompt. Whatever is not named here counts, known or not.
_NOT_PROMPT = frozenset(
    {
        "audio", "frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "messages",
        "metadata", "modalities", "model", "moderation", "n", "parallel_tool_calls", "prediction", "presence_penalty",
        "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning_effort", "safety_identifier",
        "seed", "service_tier", "stop", "store", "stream", "stream_options", "temperature", "top_logprobs", "top_p",
        "user", "verbosity",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Family:
    """Milli-tokens per character for estimates; tokens per image, whose size nobody knows here."""

    hangul: int
    other: int
    image_estimate: int
    image_bound: int
    alphanumeric: int = 250
    space: int = 100
    low_detail_bound: int | None = None
    """None where ``detail`` changes nothing, or not enough to be worth a rule."""
    films: bool = False
    """Whether some of its models take films or documents in an image's place."""
    rewrites: bool = False
    """Whether the tokenizer may rewrite text before it cuts it."""


# An estimate may not exceed the bound: no factor above 1,000 for what can be one byte, none above 2,000 elsewhere.
# Hangul: cl100k 0.95-1.05 and o200k 0.54-0.55 a syllable, measured. HyperCLOVA X has no official figure; NAVER's
# guide says that a Korean word is usually 1 to 2 tokens, cut at its morphemes, and a vocabulary made for Korean should
# not do worse than o200k: the upper end of that errs towards the invoice. Claude and unknown: cl100k's upper end, for
# the same reason. Gemini: between the two, with a vocabulary of 256,000. English: OpenAI's "four characters a token".
#
# Images, the dearest documented rule of any model with that tokenizer:
#   OpenAI tiles: at most 2 x 4 of them after scaling to 2,048 and 768. GPT-4 Turbo, 4o, 4.1: 85 + 8 x 170 = 1,445;
#   GPT-4o mini 2,833 + 8 x 5,667 = 48,169, low detail 2,833. Models that count 32-pixel patches stay below that up to
#   40,000 patches x 1.2, about 6,400 x 6,400 pixels.
#   Claude: 28-pixel patches, at most 4,784 since Opus 4.7 (about 1,600 before).
#   Gemini: 258 a tile of at least 256 pixels, at most 2 x 12 of them within 3,072 pixels: 6,192; one more for luck.
#   HyperCLOVA X: no rule is published. Sides of at most 2,240 pixels in patches of 28, as in the vision encoder of the
#   open HyperCLOVA X models, are 6,400.
_FAMILIES: dict[str, _Family] = {
    "cl100k": _Family(hangul=1_050, other=1_000, image_estimate=765, image_bound=1_445),
    "o200k": _Family(hangul=550, other=700, image_estimate=765, image_bound=48_169, low_detail_bound=2_833),
    "hyperclova": _Family(hangul=550, other=800, image_estimate=1_024, image_bound=6_400, films=True),
    "claude": _Family(hangul=1_050, other=1_000, image_estimate=1_590, image_bound=4_784, rewrites=True),
    "gemini": _Family(hangul=700, other=800, image_estimate=1_032, image_bound=6_450, films=True, rewrites=True),
    "unknown": _Family(hangul=1_050, other=1_000, image_estimate=1_590, image_bound=48_169, films=True, rewrites=True),
}

_MESSAGE_FIELDS = frozenset(
    {
        "content", "role", "name", "tool_calls", "tool_call_id", "function_call", "refusal", "reasoning",
        "reasoning_content", "reasoning_details", "thinking_blocks", "annotations", "cache_control", "prefix", "partial",
        "id", "type", "status", "timestamp", "created_at", "weight",
    }
)  # fmt: skip
_PART_MARKS = frozenset({"cache_control", "prompt_cache_breakpoint"})

_Kind = Literal["text", "json", "unknown", "image", "message", "part", "tool_call", "tools", "tool"]
# Characters that no normal form changes or puts together with others in more bytes: ASCII, Hangul syllables, Han.
_STEADY = re.compile(r"[\x00-\x7f\u4e00-\u9fff\uac00-\ud7a3]+")
_PIECE_CHARS = 64 * 1024
_BOUNDS: dict[_Kind, int] = {
    "message": _MESSAGE_BOUND,
    "part": _PART_BOUND,
    "tool_call": _TOOL_CALL_BOUND,
    "tools": _FIRST_TOOL_BOUND,
    "tool": _TOOL_BOUND,
}
_NOT_HANGUL = re.compile(r"[^\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7a3\ud7b0-\ud7ff]+")
_NOT_ALPHANUMERIC = re.compile("[^0-9A-Za-z]+")
_NOT_SPACE = re.compile(r"\S+")


class Prompt:
    """Everything in a request that a provider may turn into prompt tokens, walked through once.

    A request is counted for each model that may serve it, and twice where it may be too long for one. All of its texts
    are counted as one text, and all of its JSON as one array: what is counted of them adds up, and a call for each of
    100,000 small ones takes seconds.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        texts: list[str] = []
        self._values: list[Any] = []
        self._unknown: list[Any] = []
        self._images: list[Any] = []
        self._counts: Counter[_Kind] = Counter()
        for kind, value in _walk(body):
            match kind:
                case "text":
                    texts.append(value)
                case "json":
                    self._values.append(value)
                case "unknown":
                    self._unknown.append(value)
                case "image":
                    self._images.append(value)
                case _:
                    self._counts[kind] += 1
        self._text = "".join(texts)
        self._bounds: dict[Tokenizer, int] = {}
        self._estimates: dict[Tokenizer, int] = {}

    def upper_bound(self, tokenizer: Tokenizer, *, image_tokens: int | None = None) -> int:
        """The most prompt tokens that the request can be billed for.

        ``image_tokens`` replaces the family's bound for one image, where more is known about the model.
        """
        family = _FAMILIES[tokenizer]
        if (words := self._bounds.get(tokenizer)) is None:
            words = _text_bound(self._text, family) + (_json_bound(self._values, family) if self._values else 0)
            self._bounds[tokenizer] = words
        bound = _REQUEST_BOUND + words + _NO_BOUND * len(self._unknown)
        for image in self._images:
            if not charges.is_one_image(_address(image), films=family.films):
                bound += _NO_BOUND
            else:
                bound += _image_bound(image, family) if image_tokens is None else image_tokens
        return bound + sum(_BOUNDS[kind] * count for kind, count in self._counts.items())

    def estimate(self, tokenizer: Tokenizer) -> int:
        """About how many tokens a provider counts for the prompt; never more than :meth:`upper_bound`."""
        if (known := self._estimates.get(tokenizer)) is not None:
            return known
        family = _FAMILIES[tokenizer]
        milli = _milli_tokens(self._text, family)
        images: list[Any] = []
        others: list[Any] = []
        for image in self._images:
            (images if charges.is_one_image(_address(image), films=family.films) else others).append(image)
        if values := [*self._values, *self._unknown, *others]:
            milli += _milli_tokens(json.dumps(values, ensure_ascii=False, separators=(",", ":")), family)
        # Of parts and tools the words are counted; their wrapping is small.
        tokens = _REQUEST_ESTIMATE + _MESSAGE_ESTIMATE * self._counts["message"]
        tokens += sum(_image_estimate(image, family) for image in images)
        self._estimates[tokenizer] = estimated = _up(milli + 1_000 * tokens)
        return estimated


def upper_bound_completion(body: Mapping[str, Any], *, output_limit: int) -> int:
    """The most completion tokens that a chat request can be billed for: every choice may use the whole limit, and the
    tokens of a prediction that turn out wrong are billed as output.
    """
    n = body.get("n")
    choices = n if isinstance(n, int) and n > 1 else 1
    prediction = body.get("prediction")
    predicted = 0 if prediction is None else len(json.dumps(prediction))
    return choices * (output_limit + charges.thinking_tokens(body) + predicted)


def estimate(text: str, tokenizer: Tokenizer) -> int:
    """About how many tokens ``text`` is, rounded up; never more than its UTF-8 bytes."""
    return _up(_milli_tokens(text, _FAMILIES[tokenizer]))


class CompletionCounter:
    """Estimates the completion tokens of an answer, chunk by chunk, for a stream that ends without usage.

    Takes JSON answers too. Like OpenAI's figures, ``completion_tokens`` includes ``reasoning_tokens``.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._family = _FAMILIES[tokenizer]
        self._answers: dict[Any, list[str]] = {}  # by the index of the choice; counted when somebody asks
        self._reasoning: dict[Any, list[str]] = {}

    def feed(self, chunk: Mapping[str, Any]) -> None:
        """Count one chunk; what is not shaped like one counts nothing."""
        choices = canonical.answer(dict(chunk)).get("choices")
        if not isinstance(choices, list):
            return
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            delta = choice.get("delta") or choice.get("message")
            if not isinstance(delta, dict):
                continue
            index = choice.get("index")
            self._feed(index if isinstance(index, int) else 0, delta)

    def _feed(self, key: int, said: Mapping[str, Any]) -> None:
        for name, value in said.items():
            if not value:
                continue
            if name in {"content", "refusal"}:
                self._add(self._answers, key, value)
            elif name == "reasoning_content":
                self._add(self._reasoning, key, value)
            elif name == canonical.OTHER_PARTS:
                self._add(self._answers, key, canonical.text_of_other_parts(value))
            elif name == "tool_calls" and isinstance(value, list):
                for call in value:
                    if isinstance(call, dict):
                        self._add_call(key, call.get("function") or call.get("custom"))
            elif name == "function_call":
                self._add_call(key, value)
            elif name == "audio" and isinstance(value, dict):
                self._add(self._answers, key, value.get("transcript"))

    @property
    def completion_tokens(self) -> int:
        """Of all choices, reasoning included."""
        return self._count(self._answers) + self.reasoning_tokens

    @property
    def reasoning_tokens(self) -> int:
        """Of all choices."""
        return self._count(self._reasoning)

    def _count(self, texts: dict[Any, list[str]]) -> int:
        return sum(_up(_milli_tokens("".join(pieces), self._family)) for pieces in texts.values())

    def _add(self, to: dict[Any, list[str]], key: int, text: Any) -> None:
        if isinstance(text, str):
            to.setdefault(key, []).append(text)

    def _add_call(self, key: int, function: Any) -> None:
        if isinstance(function, dict):
            for field in ("name", "arguments", "input"):
                self._add(self._answers, key, function.get(field))


def _walk(body: Mapping[str, Any]) -> Iterator[tuple[_Kind, Any]]:
    """Everything in a request that a provider may turn into prompt tokens, in pieces that are counted alike."""
    messages = body.get("messages")
    if isinstance(messages, list):
        for message in messages:
            yield "message", None
            yield from _walk_message(message)
    elif messages is not None:
        yield "json", messages
    for name, value in body.items():
        if name in _NOT_PROMPT or value is None:
            continue
        if name in {"tools", "functions"} and isinstance(value, list):
            if value:
                yield "tools", None
            for tool in value:
                yield "tool", None
                yield "json", tool
        else:
            yield "part", None
            yield "json", {name: value}


def _walk_message(message: Any) -> Iterator[tuple[_Kind, Any]]:
    if not isinstance(message, dict):
        yield "json", message
        return
    for name, value in message.items():
        if value is None:
            continue
        if name == "content" and isinstance(value, list):
            for part in value:
                yield "part", None
                yield from _walk_part(part)
        elif name not in _MESSAGE_FIELDS:
            yield "unknown", value  # a file, or an answer that was spoken: anything by its id
        elif isinstance(value, str):
            yield "part", None
            yield "text", value
        else:
            if name == "tool_calls" and isinstance(value, list):
                for _ in value:
                    yield "tool_call", None
            yield "json", {name: value}


def _walk_part(part: Any) -> Iterator[tuple[_Kind, Any]]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or not part.keys() <= {"type", kind, *_PART_MARKS}:
        yield "unknown", part  # a part that is another one besides
    elif kind == "text" and isinstance(part.get("text"), str):
        yield "text", part["text"]
    elif kind == "image_url" and _address(part.get("image_url")) is not None:
        yield "image", part["image_url"]
    elif kind == "refusal" or (kind == "input_audio" and charges.is_recording(part.get("input_audio"))):
        # No provider makes more than one token of a byte of audio, and base64 is a third longer than that.
        yield "json", part
    else:
        yield "unknown", part


def _address(image: Any) -> Any:
    """An image's URL; None where there may be something else."""
    if isinstance(image, dict):
        return image.get("url") if image.keys() <= {"url", "detail"} else None
    return image


def _is_low_detail(image: Any) -> bool:
    return isinstance(image, dict) and image.get("detail") == "low"


def _image_bound(image: Any, family: _Family) -> int:
    if family.low_detail_bound is not None and _is_low_detail(image):
        return family.low_detail_bound
    return family.image_bound


def _image_estimate(image: Any, family: _Family) -> int:
    if family.low_detail_bound is not None and _is_low_detail(image):
        return _LOW_DETAIL_ESTIMATE
    return family.image_estimate


def _text_bound(text: str, family: _Family) -> int:
    if text.isascii():
        return len(text)
    bound = _utf8_bytes(text)
    return max(bound, _normalized_bytes(text)) if family.rewrites else bound


def _json_bound(value: Any, family: _Family) -> int:
    bound = len(json.dumps(value))
    return max(bound, _text_bound(json.dumps(value, ensure_ascii=False), family)) if family.rewrites else bound


def _normalized_bytes(text: str) -> int:
    """At least the UTF-8 bytes of ``text`` in Unicode's composed forms, NFC and NFKC, in time that grows with its length.

    Normalizing sorts the marks that follow a letter, which takes the square of their number, and a client decides how
    many there are. So each character is decomposed by itself, kept apart from the next by a NUL, and nothing is sorted.
    A composed form never has more bytes than the decomposed one: no character has more bytes than what it decomposes into
    (tests/unit/test_tokens.py asks all of them). Hangul syllables count as they are, since whatever follows one, composing
    puts it together again; the same is true of what is left out beside them.
    """
    rest = _STEADY.sub("", text)
    bound = _utf8_bytes(text) - _utf8_bytes(rest)
    for start in range(0, len(rest), _PIECE_CHARS):
        piece = rest[start : start + _PIECE_CHARS]
        apart = "\0".join(piece)
        bound += max(_utf8_bytes(unicodedata.normalize(form, apart)) for form in ("NFD", "NFKD")) - len(piece) + 1
    return bound


def _utf8_bytes(text: str) -> int:
    # JSON can smuggle in half a surrogate pair; a provider replaces it by a character of as many bytes.
    return len(text.encode("utf-8", "surrogatepass"))


def _milli_tokens(text: str, family: _Family) -> int:
    length = len(text)
    hangul = 0 if text.isascii() else len(_NOT_HANGUL.sub("", text))
    if hangul == length:
        return hangul * family.hangul
    alphanumeric = len(_NOT_ALPHANUMERIC.sub("", text))
    space = len(_NOT_SPACE.sub("", text))
    other = length - hangul - alphanumeric - space
    return hangul * family.hangul + alphanumeric * family.alphanumeric + space * family.space + other * family.other


def _up(milli: int) -> int:
    return -(-milli // 1_000)
