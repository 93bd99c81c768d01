"""API keys: shown once, kept as SHA-256.

``sk-naru-<id>-<secret>``: the id says where the key's meter lies, so there is nothing to look up before the one write
that admits a request, and a key keeps its meter when its secret is rotated. The id is no secret; only the whole text
opens anything.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from naru.errors import AuthenticationError

_SECRET = re.compile(r"sk-naru-([a-z0-9]{12})-[A-Za-z0-9_-]{43}")
_ID_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: nobody mistakes one for another
_BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class Proven:
    """A key whose secret was proved when its batch was submitted; the worker that runs the batch has no secret of it.

    It stands where an Authorization header would. Nothing that comes from outside can be one.
    """

    key_id: str


def new_key_id() -> str:
    """An id for a new key: ``key_`` and 60 random bits."""
    return "key_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(12))


def new_secret(key_id: str) -> str:
    """A fresh secret for a key: 256 random bits, so a plain hash is enough and no salt is needed."""
    return f"sk-naru-{key_id.removeprefix('key_')}-{secrets.token_urlsafe(32)}"


def hash_secret(secret: str) -> str:
    """What is stored instead of the secret, in hexadecimal."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read_authorization(header: str | Proven | None) -> tuple[str, str | None]:
    """The id of the key in an Authorization header, and the hash of its secret: a claim, not yet a proof. None where
    the proof was given before.

    Raises :class:`~naru.errors.AuthenticationError` for what cannot be a key of Naru's.
    """
    if isinstance(header, Proven):
        return header.key_id, None
    if not header or not header.lower().startswith(_BEARER):
        raise AuthenticationError(
            "There is no API key in this request. Send it in the header 'Authorization: Bearer sk-naru-…'."
        )
    secret = header[len(_BEARER) :].strip()
    if not (match := _SECRET.fullmatch(secret)):
        raise unknown_key()
    return f"key_{match[1]}", hash_secret(secret)


def unknown_key() -> AuthenticationError:
    """The answer to a key that is none, whatever the reason: it says nothing about which keys there are."""
    return AuthenticationError(
        "The API key is not known here. Check that it is a Naru key (sk-naru-…), complete and for this gateway; "
        "a provider's own key does not open Naru."
    )


def expired_key() -> AuthenticationError:
    """The answer to a key, or an old secret of one, whose time is over."""
    return AuthenticationError("This API key has expired. Ask the operator for a new one.")
