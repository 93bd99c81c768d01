"""Who spends, and how much they may: names, tags and budgets of keys, and the organisation's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from naru.api_keys import KeyView, OrganisationView
from naru.key_store import KeyStore
from naru.meter_state import UNLIMITED

_ALL = 10**9


@dataclass(frozen=True, slots=True)
class Accounts:
    """All keys, and the organisation, as they were at one moment."""

    keys: Mapping[str, KeyView]
    organisation: OrganisationView

    def name(self, key_id: str) -> str:
        """Of a key; its id where it is not known any more."""
        return self.keys[key_id].name if key_id in self.keys else key_id

    def tags(self, key_id: str) -> list[str]:
        """``team=app`` and the like; none for a key without tags."""
        tags = self.keys[key_id].tags if key_id in self.keys else {}
        return [f"{name}={text}" for name, text in sorted(tags.items())]

    @property
    def budget_pico_usd(self) -> int | None:
        """The organisation's; None where nothing limits it."""
        return budget_or_none(self.organisation.budget_pico_usd)

    def only(self, key_id: str) -> Accounts:
        """What one key may know of them: itself."""
        return Accounts({key_id: self.keys[key_id]} if key_id in self.keys else {}, self.organisation)


def budget_or_none(budget_pico_usd: int) -> int | None:
    return budget_pico_usd if budget_pico_usd < UNLIMITED else None


async def load_accounts(keys: KeyStore, *, now_ms: int) -> Accounts:
    """All of them. Raises :class:`~naru.errors.StoreUnavailableError`."""
    page = await keys.page(now_ms=now_ms, after=None, limit=_ALL)
    return Accounts({view.key_id: view for view in page.keys}, await keys.organisation(now_ms=now_ms))


async def load_account(keys: KeyStore, key_id: str, *, now_ms: int) -> Accounts:
    """One key, and the organisation."""
    return Accounts({key_id: await keys.get(key_id, now_ms=now_ms)}, await keys.organisation(now_ms=now_ms))
