"""API keys: shown once, kept as SHA-256."""

from __future__ import annotations

import hashlib
import secrets

PREFIX = "sk-naru-"


def new_secret() -> str:
    """A fresh API key: 256 random bits, so a plain hash is enough and no salt is needed."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    """What is stored instead of the key, in hexadecimal."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
