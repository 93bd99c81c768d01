"""Which gateway a command talks to, and with which key."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from naru.cli.output import CommandError, MisuseError

_LOCAL = Path(".naru", "local.json")


@dataclass(frozen=True, slots=True)
class KeyKind:
    """A kind of key and its names: in a local run's file, in the environment, among the options; ``advice`` says where one comes from."""

    words: str
    field: str
    variable: str
    option: str
    advice: str


ADMIN_KEY: Final = KeyKind("admin key", "admin_key", "NARU_ADMIN_KEY", "--admin-key", "'naru admin init' makes one")
API_KEY: Final = KeyKind("API key", "api_key", "NARU_API_KEY", "--api-key", "'naru keys create' makes one")


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway and a key for it; ``source`` says where they were found, for messages."""

    base_url: str
    key: str
    source: str


def find_target(
    kind: KeyKind, base_url: str | None, key: str | None, environment: Mapping[str, str], folder: Path
) -> Target:
    """The gateway to talk to: as given, else of the environment, else of a local run in the folder or above it.

    Raises :class:`~naru.cli.output.MisuseError` when there is none, or only half of what is needed.
    """
    base_url = base_url or environment.get("NARU_BASE_URL")
    key = key or environment.get(kind.variable)
    source = f"--base-url and {kind.option}, or NARU_BASE_URL and {kind.variable}"
    if not base_url and not key:
        base_url, key, source = _of_local_run(kind, folder)
    if not base_url:
        raise MisuseError(f"there is an {kind.words} and no gateway to send it to: set NARU_BASE_URL, or --base-url")
    if not key:
        raise MisuseError(f"there is no {kind.words} for {base_url}: set {kind.variable}; {kind.advice}")
    base_url, key = base_url.strip().rstrip("/"), key.strip()
    if not re.fullmatch(r"https?://[!-~]+", base_url):
        raise MisuseError(f"the base URL {base_url!r} must begin with http:// or https://, and ends in /v1")
    _check_host(base_url)
    if not re.fullmatch(r"[!-~]+", key):
        raise MisuseError(f"the {kind.words} holds spaces or letters that no key has; copy it anew (sk-naru-…)")
    return Target(base_url, key, source)


def _check_host(base_url: str) -> None:
    """What has no host that can be looked up: of a variable that is empty (https://.execute-api…), or half typed."""
    try:
        parts = urlsplit(base_url)
        names_host = bool((parts.hostname or "").encode("idna")) and parts.port != 0
    except ValueError:  # UnicodeError is one
        names_host = False
    if not names_host:
        raise MisuseError(
            f"the base URL {base_url!r} names no host and port that can be; it is the stack's output BaseUrl"
        )


def _of_local_run(kind: KeyKind, folder: Path) -> tuple[str, str, str]:
    file = next((above / _LOCAL for above in (folder, *folder.parents) if (above / _LOCAL).is_file()), None)
    if file is None:
        raise MisuseError(
            f"which gateway? Set NARU_BASE_URL and {kind.variable} ({kind.advice}), or start one here with 'make run'"
        )
    try:
        local = json.loads(file.read_text(encoding="utf-8"))
        return str(local["base_url"]), str(local[kind.field]), str(file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{file} cannot be used ({type(error).__name__}: {error}); start 'make run' anew") from None
