"""What `make run` decides before it starts anything."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from local import run

CATALOG = """
version = "test"
krw_per_usd = 1400
[providers.mine]
base_url = "https://llm.example/v1"
dialect = "openai"
secret = "my_llm"
[models.m]
owned_by = "me"
created = 0
tokenizer = "unknown"
default_output_tokens = 10
[[models.m.deployments]]
name = "mine/m"
provider = "mine"
upstream_model = "m"
price = { currency = "USD", input_micro_per_mtok = 1, output_micro_per_mtok = 1 }
capabilities = []
stream_usage = true
context_tokens = 100
max_output_tokens = 10
"""


def test_providers_without_a_key_are_simulated_each_in_its_own_dialect() -> None:
    """Nothing but Python is needed to try the gateway."""
    chosen = run.choose_providers(None, {})
    assert chosen.variables == {"holysheep": "HOLYSHEEP_API_KEY", "clovastudio": "CLOVASTUDIO_API_KEY"}
    assert chosen.base_urls("http://m") == {"holysheep": "http://m/v1", "clovastudio": "http://m/clova/v1/openai"}
    assert chosen.keys == {"holysheep": "sim-holysheep", "clovastudio": "sim-clovastudio"}


@pytest.mark.parametrize("variable", ["HOLYSHEEP_API_KEY", "YOUR_HOLYSHEEP_API_KEY"])
def test_a_provider_with_a_key_is_the_real_one(variable: str) -> None:
    """Its address is the catalog's."""
    chosen = run.choose_providers(None, {variable: "hs-1", "CLOVASTUDIO_API_KEY": ""})
    assert chosen.variables["holysheep"] == variable
    assert set(chosen.base_urls("http://m")) == {"clovastudio"}
    assert chosen.keys == {"holysheep": "hs-1", "clovastudio": "sim-clovastudio"}


def test_a_provider_of_ones_own_is_simulated_until_it_has_a_key(tmp_path: Path) -> None:
    """The variable is named after the catalog's `secret`."""
    own = tmp_path / "catalog.toml"
    own.write_text(CATALOG)
    chosen = run.choose_providers(own, {})
    assert chosen.base_urls("http://m") == {"mine": "http://m/v1"}
    assert chosen.variables == {"mine": "MY_LLM_API_KEY"}
    assert run.choose_providers(own, {"MY_LLM_API_KEY": "k"}).keys == {"my_llm": "k"}


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision that went wrong must not start the whole system."""
    monkeypatch.setattr(run, "_until_stopped", None)
    monkeypatch.setattr(run, "stay_on_this_machine", lambda: None)


@pytest.mark.usefixtures("quiet")
def test_a_taken_port_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With what to do about it, before anything has been started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("NARU_PORT", str(port))
        assert run.main() == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"port {port} " in said
    assert f"NARU_PORT={port + 1} make run" in said


@pytest.mark.usefixtures("quiet")
def test_an_invalid_catalog_is_said_in_one_line_that_names_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typo must not be found by the first request."""
    own = tmp_path / "catalog.toml"
    own.write_text(CATALOG.replace("krw_per_usd", "krw_per_dollar"))
    monkeypatch.setenv("NARU_PORT", "0")
    monkeypatch.setenv("NARU_CATALOG", str(own))
    assert run.main() == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "krw_per_dollar: there is no such setting" in said
