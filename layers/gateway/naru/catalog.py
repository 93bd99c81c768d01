"""The catalog: which models there are, who serves them, what they can do and what they cost.

One TOML file, validated strictly when it is read: an unknown or missing key stops the start-up with a
:class:`~naru.errors.CatalogError` that names the key, because a wrong price is found on the invoice.
"""

from __future__ import annotations

import tomllib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from naru.errors import CatalogError, ModelNotFoundError
from naru.pricing import Currency, Rates, to_pico_usd_per_token

BUILT_IN = Path(__file__).with_name("catalog.toml")

Capability = Literal[
    "json_object", "json_schema", "reasoning", "tools", "vision", "audio", "prefill", "multiple_choices"
]
Strategy = Literal["priority", "weighted", "lowest-latency", "lowest-cost"]
Tokenizer = Literal["cl100k", "o200k", "hyperclova", "claude", "gemini", "unknown"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$")]
Seconds = Annotated[float, Field(gt=0, le=900)]


def _as_set(value: Any) -> Any:
    # TOML has no sets, and strict mode takes no list for one.
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return frozenset(value)
    return value


_AS_SET = BeforeValidator(_as_set)
# A JSON number is exact only up to 2^53, and DynamoDB keeps 38 digits: no price comes near either.
MicroPerMtok = Annotated[int, Field(ge=0, le=10**15)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class Price(_Strict):
    """Micro-units of ``currency`` per million tokens; a kind of token without a price of its own costs as input."""

    currency: Currency
    input_micro_per_mtok: MicroPerMtok
    output_micro_per_mtok: MicroPerMtok
    cached_input_micro_per_mtok: MicroPerMtok | None = None
    cache_write_micro_per_mtok: MicroPerMtok | None = None
    cache_write_1h_micro_per_mtok: MicroPerMtok | None = None
    """What is written to a cache that keeps for an hour (``cache_control`` with ``"ttl": "1h"``). Without this price, but
    with one for other writes, such requests are refused."""

    @model_validator(mode="after")
    def _hours_come_with_minutes(self) -> Price:
        if self.cache_write_1h_micro_per_mtok is not None and self.cache_write_micro_per_mtok is None:
            raise ValueError("cache_write_1h_micro_per_mtok needs cache_write_micro_per_mtok")
        return self

    def rates(self, krw_per_usd: int) -> Rates:
        def pico(price: int | None) -> int:
            chosen = self.input_micro_per_mtok if price is None else price
            return to_pico_usd_per_token(chosen, currency=self.currency, krw_per_usd=krw_per_usd)

        return Rates(
            input_pico_usd=pico(self.input_micro_per_mtok),
            cached_input_pico_usd=pico(self.cached_input_micro_per_mtok),
            cache_write_pico_usd=pico(self.cache_write_micro_per_mtok),
            output_pico_usd=pico(self.output_micro_per_mtok),
            currency=self.currency,
            krw_per_usd=krw_per_usd if self.currency == "KRW" else None,
            cache_write_1h_pico_usd=(
                None if self.cache_write_1h_micro_per_mtok is None else pico(self.cache_write_1h_micro_per_mtok)
            ),
        )


class Timeouts(_Strict):
    """Seconds of one attempt. Until the first token of a stream nothing has been said to the client, so another
    attempt costs it only time; a JSON answer comes all at once, so it has time for all of its tokens.
    """

    connect_s: Seconds = 5.0
    first_byte_s: Seconds = 30.0
    first_token_s: Seconds = 60.0
    """From the call to the first token, which models that think in silence take long for."""
    silence_s: Seconds = 30.0
    """Between two events, once tokens have begun to come."""
    token_s: Annotated[float, Field(gt=0, le=10)] = 0.02
    """What one token takes of a slow day: an answer that comes all at once may take first_byte_s, and this for each
    token that it may have."""

    def answer_s(self, output_limit: int) -> float:
        """How long a JSON answer of so many tokens may take."""
        return self.connect_s + self.first_byte_s + output_limit * self.token_s


class Provider(_Strict):
    """Somebody's API: where it is, which dialect it speaks, which secret opens it."""

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+[^/\s?#]$")]
    dialect: Literal["openai", "clovastudio"]
    secret: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    region: str | None = None
    timeouts: Timeouts = Timeouts()


class Deployment(_Strict):
    """A model at a provider."""

    name: Name
    provider: str
    upstream_model: Annotated[str, Field(min_length=1, max_length=200)]
    price: Price
    capabilities: Annotated[frozenset[Capability], _AS_SET]
    stream_usage: bool
    """Whether the provider takes ``stream_options.include_usage``; where not, tokens of a stream are counted."""
    output_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    context_tokens: Annotated[int, Field(gt=0)]
    max_output_tokens: Annotated[int, Field(gt=0)]
    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    timeouts: Timeouts | None = None
    """Its provider's, where it has none of its own."""
    strip: Annotated[frozenset[str], _AS_SET] = frozenset()
    """Request fields that this deployment does not take and whose loss does not change the answer."""
    passes: Annotated[frozenset[str], _AS_SET] = frozenset()
    """Request fields that it is sent although Naru does not know what they cost: the operator does. See
    :mod:`naru.charges`."""

    _provider: Provider = PrivateAttr()
    _rates: Rates = PrivateAttr()

    def link(self, provider: Provider, rates: Rates) -> None:
        """Called once, when the catalog is read."""
        self._provider, self._rates = provider, rates

    @property
    def at(self) -> Provider:
        """The provider that serves it."""
        return self._provider

    @property
    def patience(self) -> Timeouts:
        """How long to wait for it."""
        return self.timeouts or self._provider.timeouts

    @property
    def rates(self) -> Rates:
        """What its tokens cost."""
        return self._rates


class Model(_Strict):
    """A name that clients ask for, and who can serve it, in order of preference."""

    owned_by: str
    created: Annotated[int, Field(ge=0)]
    """Unix seconds, shown by ``GET /models``."""
    tokenizer: Tokenizer
    default_output_tokens: Annotated[int, Field(gt=0)]
    """The output limit sent upstream when the client names none. Thoughts count: a model that thinks needs room for them."""
    image_tokens: Annotated[int, Field(gt=0)] | None = None
    """The most prompt tokens that one image is billed at; without it the tokenizer family's worst."""
    strategy: Strategy = "priority"
    """Which deployment is called first: the first of the list; one by weight; the faster of two drawn at random; the
    cheapest. The others follow when it fails."""
    fallbacks: list[Name] = []
    """Models that answer in its place when none of its deployments does, in this order. The answer says who did."""
    deployments: Annotated[list[Deployment], Field(min_length=1)]

    @property
    def context_tokens(self) -> int:
        """The longest prompt, with its answer, that one of its deployments takes."""
        return max(deployment.context_tokens for deployment in self.deployments)

    @property
    def max_output_tokens(self) -> int:
        """The largest output limit that a client may ask for."""
        return max(deployment.max_output_tokens for deployment in self.deployments)


class Catalog(_Strict):
    """The whole file. ``version`` is written into every ledger row."""

    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    krw_per_usd: Annotated[int, Field(ge=1, le=1_000_000)]
    providers: dict[str, Provider]
    models: Annotated[dict[Name, Model], Field(min_length=1)]

    @model_validator(mode="after")
    def _link(self) -> Catalog:
        seen: set[str] = set()
        for model_name, model in self.models.items():
            for fallback in model.fallbacks:
                if fallback not in self.models or fallback == model_name:
                    raise ValueError(
                        f"models.{model_name}.fallbacks: {fallback!r} is not another model of this catalog"
                    )
            for index, deployment in enumerate(model.deployments):
                where = f"models.{model_name}.deployments[{index}]"
                provider = self.providers.get(deployment.provider)
                if provider is None:
                    known = ", ".join(sorted(self.providers)) or "none"
                    raise ValueError(f"{where}.provider: there is no provider {deployment.provider!r} (known: {known})")
                if deployment.name in seen:
                    raise ValueError(
                        f"{where}.name: {deployment.name!r} is taken; a ledger row must name one deployment"
                    )
                if model.default_output_tokens > deployment.max_output_tokens:
                    raise ValueError(
                        f"models.{model_name}.default_output_tokens: {model.default_output_tokens} is more than "
                        f"{deployment.name} can answer ({deployment.max_output_tokens})"
                    )
                seen.add(deployment.name)
                deployment.link(provider, deployment.price.rates(self.krw_per_usd))
        return self

    @cached_property
    def model_names(self) -> tuple[str, ...]:
        """All names a client may ask for, in the order of the file."""
        return tuple(self.models)

    def model(self, name: str) -> Model:
        """The model of that name.

        Raises :class:`~naru.errors.ModelNotFoundError`, which lists the names there are.
        """
        try:
            return self.models[name]
        except KeyError:
            raise ModelNotFoundError(
                f"The model {name[:128]!r} does not exist here. Available models: {', '.join(self.model_names)}.",
                param="model",
            ) from None


def parse(text: str, *, source: str) -> Catalog:
    """A catalog from TOML text; ``source`` is how error messages call it.

    Raises :class:`~naru.errors.CatalogError`.
    """
    try:
        return Catalog.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{source}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise CatalogError(f"{source}: " + "; ".join(_describe(item) for item in error.errors()[:5])) from error


def load(path: Path = BUILT_IN) -> Catalog:
    """A catalog from a file.

    Raises :class:`~naru.errors.CatalogError`, also when the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: cannot be read: {error}") from error
    return parse(text, source=str(path))


def _describe(error: Any) -> str:
    where = ""
    for part in error["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    match error["type"]:
        case "extra_forbidden":
            return f"{where}: there is no such setting"
        case "missing":
            return f"{where}: is missing"
        case "value_error":
            return str(error["ctx"]["error"])
        case _:
            return f"{where}: {error['msg']} (got {error['input']!r:.80})"
