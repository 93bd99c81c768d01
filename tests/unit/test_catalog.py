from collections.abc import Callable
from pathlib import Path

import pytest

from naru import catalog, models
from naru.errors import CatalogError, ModelNotFoundError

TEXT = catalog.BUILT_IN.read_text(encoding="utf-8")


def test_the_built_in_catalog_has_the_models_and_prices_of_the_price_list() -> None:
    built_in = catalog.load()
    assert built_in.model_names == (
        "hyperclova-x-omni",
        "hyperclova-x-omni-fast",
        "HCX-007",
        "HCX-005",
        "HCX-DASH-002",
        "claude-sonnet-4-5",
        "gpt-4.1",
        "gemini-2.5-flash",
    )
    omni = built_in.model("hyperclova-x-omni").deployments[0]
    assert (omni.rates.input_pico_usd, omni.rates.output_pico_usd) == (3_500_000, 10_500_000)
    assert omni.at.base_url == "https://api.holysheep.ai/v1"


def test_a_price_in_won_is_converted_at_the_catalogs_rate_and_says_so() -> None:
    rates = catalog.parse(TEXT.replace("krw_per_usd = 1_400", "krw_per_usd = 1_250"), source="x")
    hcx = rates.model("HCX-007").deployments[0].rates
    # KRW 1.25 per thousand tokens at 1,250 won a dollar: one dollar per million.
    assert (hcx.input_pico_usd, hcx.output_pico_usd, hcx.currency, hcx.krw_per_usd) == (
        1_000_000,
        4_000_000,
        "KRW",
        1250,
    )


def test_an_unknown_model_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ModelNotFoundError, match=r"'gpt-9' does not exist here.*hyperclova-x-omni, ") as refused:
        catalog.load().model("gpt-9")
    assert refused.value.body()["error"]["code"] == "model_not_found"


FIRST = "models.hyperclova-x-omni.deployments[0]"


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda t: t.replace("stream_usage = true", 'stream_usage = "yes"', 1), f"{FIRST}.stream_usage: "),
        (lambda t: t.replace("stream_usage = true", "stream_usage = true\nstream_usge = 1", 1), f"{FIRST}.stream_usge: there is no such setting"),
        (lambda t: t.replace("input_micro_per_mtok = 3_500_000", "input_micro_per_mtok = 3.5", 1), f"{FIRST}.price.input_micro_per_mtok: "),
        (lambda t: t.replace("input_micro_per_mtok = 3_500_000, ", "", 1), f"{FIRST}.price.input_micro_per_mtok: is missing"),
        (lambda t: t.replace("output_micro_per_mtok = 10_500_000", "output_micro_per_mtok = -1", 1), f"{FIRST}.price.output_micro_per_mtok: "),
        (lambda t: t.replace('provider = "holysheep"', 'provider = "holysheeep"', 1), f"{FIRST}.provider: there is no provider 'holysheeep'"),
        (lambda t: t.replace('"holysheep/hyperclova-x-omni-fast"', '"holysheep/hyperclova-x-omni"', 1), "'holysheep/hyperclova-x-omni' is taken"),
        (lambda t: t.replace('capabilities = ["json_object"', 'capabilities = ["telepathy"', 1), f"{FIRST}.capabilities"),
        (lambda t: t.replace("default_output_tokens = 4_096", "default_output_tokens = 99_999", 1), "models.hyperclova-x-omni.default_output_tokens"),
        (lambda t: t.replace('version = "2026-11-27"', "", 1), "version: is missing"),
        (lambda t: t.replace("krw_per_usd = 1_400", "krw_per_usd = 0", 1), "krw_per_usd: "),
        (lambda t: t.replace('base_url = "https://api', 'base_url = "ftp://api', 1), "providers.holysheep.base_url: "),
        (lambda t: t.replace('fallbacks = ["HCX-005"]', 'fallbacks = ["HCX-008"]', 1), "models.HCX-007.fallbacks: 'HCX-008' is not another model"),
        (lambda t: t + "\n[[", "not valid TOML"),
    ],
)  # fmt: skip
def test_a_wrong_catalog_is_refused_by_the_name_of_its_key(break_it: Callable[[str], str], said: str) -> None:
    broken = break_it(TEXT)
    assert broken != TEXT
    with pytest.raises(CatalogError) as refused:
        catalog.parse(broken, source="my.toml")
    assert str(refused.value).startswith("my.toml: ")
    assert said in str(refused.value)


def test_models_that_think_have_room_for_it_and_clients_are_told_the_limits() -> None:
    built_in = catalog.load()
    for listed in models.listing(built_in)["data"]:
        model = built_in.model(listed["id"])
        limits = listed["default_output_tokens"], listed["max_output_tokens"], listed["context_tokens"]
        assert limits == (
            model.default_output_tokens,
            max(deployment.max_output_tokens for deployment in model.deployments),
            max(deployment.context_tokens for deployment in model.deployments),
        )
        if any("reasoning" in deployment.capabilities for deployment in model.deployments):
            assert model.default_output_tokens >= 8_192
    assert built_in.model("gemini-2.5-flash").default_output_tokens > 24_576  # the most that it thinks


def test_a_price_for_an_hour_in_a_cache_needs_one_for_minutes() -> None:
    with pytest.raises(CatalogError, match="cache_write_1h_micro_per_mtok needs cache_write_micro_per_mtok"):
        catalog.parse(TEXT.replace("cache_write_micro_per_mtok = 3_750_000\n", ""), source="my.toml")


def test_lists_of_the_file_are_sets() -> None:
    text = TEXT.replace("stream_usage = true", 'stream_usage = true\nstrip = ["user"]\npasses = ["plugins"]', 1)
    deployment = catalog.parse(text, source="my.toml").model("hyperclova-x-omni").deployments[0]
    assert (deployment.strip, deployment.passes) == (frozenset({"user"}), frozenset({"plugins"}))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"nowhere\.toml: cannot be read"):
        catalog.load(tmp_path / "nowhere.toml")
