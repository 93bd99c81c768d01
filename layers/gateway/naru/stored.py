"""Where files and batches lie: one table and one bucket.

The table has entries on shelves::

    files#<key id>      file-…                     a file: its name, size, and where its bytes are
    uploads             key_…                     the uploads of a key that are not completed
    batches#<key id>    batch_…                    a batch: its phase, times and counts
    batch#<batch id>    range#00012                a range of lines: who works on it, until when
    batch#<batch id>    line#00001234              a line: who called for it, then its result
    open                batch_…                    a batch that has not ended

What belongs to a key lies on a shelf of that key, so nobody finds what is another's.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from naru.errors import StoreUnavailableError

DAY_S = 86_400
KEPT_DAYS = 30
"""OpenAI keeps the files of a batch so long."""

_TIMED = re.compile(r"(?:file-|batch_)([0-9a-f]{12})[0-9a-f]{20}")


def new_file_id(*, at_ms: int) -> str:
    """An id for a file that came at ``at_ms`` (Unix milliseconds). Ids sort by time, as those of requests."""
    return f"file-{at_ms:012x}{secrets.token_hex(10)}"


def new_batch_id(*, at_ms: int) -> str:
    """An id for a batch that was submitted at ``at_ms`` (Unix milliseconds)."""
    return f"batch_{at_ms:012x}{secrets.token_hex(10)}"


def file_id_of_batch(batch_id: str, name: str, *, at_ms: int) -> str:
    """The id of a file that a batch makes; ``name`` says which, and who makes it."""
    return f"file-{at_ms:012x}{hashlib.sha256(f'{batch_id} {name}'.encode()).hexdigest()[:20]}"


def is_id(text: str) -> bool:
    """Whether this can be the id of a file or a batch."""
    return bool(_TIMED.fullmatch(text))


def created_ms(batch_id: str) -> int:
    """When a batch was submitted, in Unix milliseconds."""
    if not (match := _TIMED.fullmatch(batch_id)):
        raise ValueError("not an id of a batch")
    return int(match[1], 16)


@contextmanager
def reached(what: str) -> Iterator[None]:
    """Inside, what AWS refuses is a :class:`~naru.errors.StoreUnavailableError` about ``what``."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise StoreUnavailableError(
            "The gateway cannot reach its store of files and batches at the moment. Try again shortly.",
            log={"reason": f"{type(error).__name__} on {what}: {error}"},
        ) from error
