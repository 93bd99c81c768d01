from zoneinfo import ZoneInfo

import pytest

from naru.errors import SettingsError
from naru.settings import Settings

GIVEN = {
    "NARU_LEDGER_TABLE": "ledger",
    "NARU_METER_TABLE": "meter",
    "NARU_PROVIDER_KEYS_SECRET": "keys",
    "NARU_IDEMPOTENCY_TABLE": "idempotency",
    "NARU_HEALTH_TABLE": "health",
    "NARU_ANSWERS_BUCKET": "answers",
}


def test_six_names_are_enough() -> None:
    settings = Settings.from_environment(GIVEN | {"PATH": "/bin"})
    assert (settings.ledger_table, settings.time_zone, settings.catalog_uri) == ("ledger", ZoneInfo("Asia/Seoul"), "")


def test_what_the_template_passes_when_nothing_is_set_is_accepted() -> None:
    settings = Settings.from_environment(GIVEN | {"NARU_CATALOG_URI": "", "NARU_PROVIDER_BASE_URLS": "{}"})
    assert settings.provider_base_urls == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"NARU_LEDGER_TABLE": ""}, "NARU_LEDGER_TABLE"),
        ({"NARU_TIME_ZONE": "Asia/Seol"}, "NARU_TIME_ZONE: .*'Asia/Seol' is not a time zone"),
        ({"NARU_PROVIDER_BASE_URLS": "http://x"}, "NARU_PROVIDER_BASE_URLS: .*is not JSON"),
        ({"NARU_CATALOG_URI": "https://x"}, "NARU_CATALOG_URI"),
        ({"NARU_MAX_ATTEMPTS": "0"}, "NARU_MAX_ATTEMPTS"),
    ],
)
def test_a_wrong_variable_is_named(change: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings.from_environment(GIVEN | change)


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(SettingsError, match="NARU_METER_TABLE: Field required"):
        Settings.from_environment({key: value for key, value in GIVEN.items() if "METER" not in key})
