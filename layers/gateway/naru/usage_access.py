"""Who may see which usage: an admin key all of it, an app's key its own."""

from __future__ import annotations

from dataclasses import dataclass

from naru.errors import PermissionDeniedError
from naru.key_store import KeyStore
from naru.meter import Meters


@dataclass(frozen=True, slots=True)
class Reader:
    """Who asks. ``key_id`` is the one key whose usage may be seen; None for an admin key, which may see all.
    ``counted_as`` is the id of the key that asks, whichever it is.
    """

    key_id: str | None
    counted_as: str

    def require_admin(self) -> None:
        """Raises :class:`~naru.errors.PermissionDeniedError` for an app's key."""
        if self.key_id is not None:
            raise PermissionDeniedError(
                "This is for admin keys. A key of an app sees its own usage at /v1/usage.", code="admin_key_required"
            )


async def reader(authorization: str | None, keys: KeyStore, meters: Meters, *, now_ms: int) -> Reader:
    """Whoever the Authorization header proves.

    Raises :class:`~naru.errors.AuthenticationError`, :class:`~naru.errors.PermissionDeniedError` for a key that is
    switched off, and :class:`~naru.errors.StoreUnavailableError`.
    """
    try:
        admin_id = await keys.authenticate_admin(authorization, now_ms=now_ms)
    except PermissionDeniedError as error:
        if error.code != "admin_key_required":
            raise
        key_id = (await meters.authenticate(authorization, now_ms=now_ms)).key_id
        return Reader(key_id, key_id)
    return Reader(None, admin_id)
