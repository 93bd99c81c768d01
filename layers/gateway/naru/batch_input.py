"""The input of a batch: read as a stream, checked line by line, divided into ranges.

Nothing here holds more than a few lines at once; of all lines there stay a hash of each custom_id and the ranges.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from naru.batch_progress import Range
from naru.wire import compact_json

ENDPOINT = "/v1/chat/completions"
MAX_LINES = 50_000
MAX_LINE_BYTES = 6 * 2**20
"""What a client could send as a request of its own."""
RANGE_BYTES = 2 * 2**20

_MAX_ERRORS = 100
_MAX_CUSTOM_ID = 512
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Request:
    """One line that makes sense."""

    custom_id: str
    model: str
    body: dict[str, Any]


@dataclass(eq=False)
class LineError(Exception):
    """What is wrong with a line, in OpenAI's words."""

    code: str
    message: str
    param: str | None = None

    def at(self, line: int | None) -> dict[str, Any]:
        """As an entry of a batch's ``errors``. The table has no null, so what is not said is left out."""
        said = {"code": self.code, "message": self.message, "line": line, "param": self.param}
        return {name: value for name, value in said.items() if value is not None}


@dataclass(slots=True)
class Checked:
    """What an input is: ranges of requests for one model, or errors."""

    model: str = ""
    lines: int = 0
    ranges: list[Range] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)


def check(
    chunks: Iterable[bytes],
    *,
    models: Collection[str],
    range_lines: int,
    each: Callable[[Request], None] = lambda _: None,
) -> Checked:
    """Checks all lines and divides them; stops where there are more errors than anybody reads.

    ``each`` is shown every good request.
    """
    found = Checked()
    seen: set[bytes] = set()
    open_range: list[int] = []  # offset, length, line, first, count
    for offset, number, line in split(chunks):
        if found.lines == MAX_LINES:
            found.errors.append(
                LineError("too_many_tasks", f"The batch has more than {MAX_LINES} requests. Divide it.").at(None)
            )
            break
        try:
            request = parse_line(line)
            _check_against(found, request, seen, models)
            each(request)
        except LineError as error:
            found.errors.append(error.at(number))
            if len(found.errors) == _MAX_ERRORS:
                break
        if open_range and (open_range[4] == range_lines or offset + len(line) - open_range[0] > RANGE_BYTES):
            _close_range(found, open_range)
            open_range = []
        if not open_range:
            open_range = [offset, 0, number, found.lines, 0]
        open_range[1] = offset + len(line) - open_range[0]
        open_range[4] += 1
        found.lines += 1
    if open_range:
        _close_range(found, open_range)
    if not found.lines:
        found.errors.append(LineError("empty_file", "The input file has no requests in it.").at(None))
    return found


def _close_range(found: Checked, values: list[int]) -> None:
    offset, length, line, first, count = values
    found.ranges.append(Range(len(found.ranges), offset, length, line, first, count))


def _check_against(found: Checked, request: Request, seen: set[bytes], models: Collection[str]) -> None:
    """What can only be seen beside the other lines."""
    digest = hashlib.blake2b(request.custom_id.encode(), digest_size=16).digest()
    if digest in seen:
        raise LineError(
            "duplicate_custom_id",
            f"The custom_id '{request.custom_id[:64]}' for this request is a duplicate of another request. The custom_id "
            "parameter must be unique for each request in a batch.",
            "custom_id",
        )
    seen.add(digest)
    if not found.model:
        if request.model not in models:
            raise LineError(
                "model_not_found",
                f"The model '{request.model[:64]}' does not exist here. See GET /v1/models.",
                "body.model",
            )
        found.model = request.model
    elif request.model != found.model:
        raise LineError(
            "model_mismatch",
            f"The model '{request.model[:64]}' differs from '{found.model}', the model of the first request. All requests "
            "in a batch must be for the same model.",
            "body.model",
        )


def split(chunks: Iterable[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """The lines that are not blank: where each begins (in bytes), its number in the file (from 1), and its bytes.

    What is longer than a line may be is given cut, which makes it a line that is no JSON.
    """
    rest, offset, number, too_long = b"", 0, 0, False
    for chunk in chunks:
        pieces = (rest + chunk).split(b"\n")
        rest = pieces.pop()
        for piece in pieces:
            number += 1
            if too_long:
                too_long = False
            elif line := _line(piece, offset):
                yield line[0], number, line[1]
            offset += len(piece) + 1
        if len(rest) > MAX_LINE_BYTES:
            if not too_long:
                yield offset, number + 1, rest[:1000]
            too_long = True
            offset += len(rest)
            rest = b""
    if not too_long and (line := _line(rest, offset)):
        yield line[0], number + 1, line[1]


def _line(piece: bytes, offset: int) -> tuple[int, bytes] | None:
    if offset == 0 and piece.startswith(_BOM):
        piece, offset = piece[len(_BOM) :], len(_BOM)
    return (offset, piece) if piece.strip() else None


def parse_line(line: bytes) -> Request:
    """One line. Raises :class:`LineError`."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise LineError("invalid_json_line", "This line is not parseable as valid JSON.") from None
    if not isinstance(value, dict):
        raise LineError("invalid_json_line", "This line is not a JSON object.")
    for name in ("custom_id", "method", "url", "body"):
        if name not in value:
            raise LineError("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    custom_id, body = value["custom_id"], value["body"]
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= _MAX_CUSTOM_ID or not _can_be_sent(custom_id):
        raise LineError(
            "invalid_custom_id", f"The custom_id must be a string of 1 to {_MAX_CUSTOM_ID} characters.", "custom_id"
        )
    if value["method"] != "POST":
        raise LineError("invalid_method", "The method must be POST.", "method")
    if value["url"] != ENDPOINT:
        raise LineError(
            "url_mismatch", f"The url {str(value['url'])[:64]!r} is not the batch's endpoint, {ENDPOINT}.", "url"
        )
    if not isinstance(body, dict):
        raise LineError("invalid_body", "The body must be an object: a request as it would be sent by itself.", "body")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise LineError("missing_required_parameter", "Missing required parameter: 'body.model'.", "body.model")
    return Request(custom_id, body["model"], body)


def _can_be_sent(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def lines_of(content: bytes, of: Range) -> list[tuple[int, bytes]]:
    """The lines of a range with their indexes, from the bytes of the range."""
    lines = [line for _, _, line in split([content])]
    if len(lines) != of.count:
        raise ValueError(f"range {of.index} has {len(lines)} lines and not {of.count}")
    return [(of.first + i, line) for i, line in enumerate(lines)]


def write_plan(ranges: Iterable[Range]) -> bytes:
    """The ranges, to be kept beside the input."""
    return compact_json([[r.offset, r.length, r.line, r.first, r.count] for r in ranges])


def read_plan(content: bytes) -> list[Range]:
    """The ranges that were kept."""
    return [Range(index, *values) for index, values in enumerate(json.loads(content))]


def input_of(requests: Iterable[tuple[str, dict[str, Any]]]) -> bytes:
    """An input file of requests that came with the batch: custom_id and body of each."""
    lines = (
        compact_json({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body})
        for custom_id, body in requests
    )
    return b"\n".join(lines) + b"\n"
