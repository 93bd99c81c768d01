from hypothesis import given
from hypothesis import strategies as st

from naru.pricing import Rates, Usage, to_pico_usd_per_token

RATES = Rates(
    input_pico_usd=3_500_000,
    cached_input_pico_usd=350_000,
    cache_write_pico_usd=4_375_000,
    output_pico_usd=10_500_000,
    currency="USD",
    krw_per_usd=None,
)
counts = st.integers(0, 10**6)


def usages() -> st.SearchStrategy[Usage]:
    return st.builds(
        lambda uncached, cached, written, answer, thought: Usage(
            prompt_tokens=uncached + cached + written,
            cached_tokens=cached,
            cache_write_tokens=written,
            completion_tokens=answer + thought,
            reasoning_tokens=thought,
        ),
        counts,
        counts,
        counts,
        counts,
        counts,
    )


def test_the_tutorials_example_costs_what_its_price_list_says() -> None:
    # 150 tokens in at USD 3.50 a million, 350 out at USD 10.50: 0.000525 + 0.003675 dollars.
    assert RATES.cost_pico_usd(Usage(prompt_tokens=150, completion_tokens=350)) == 4_200_000_000


def test_cached_and_cache_written_tokens_have_their_own_price() -> None:
    usage = Usage(prompt_tokens=1000, cached_tokens=600, cache_write_tokens=300, completion_tokens=0)
    assert RATES.cost_pico_usd(usage) == 100 * 3_500_000 + 600 * 350_000 + 300 * 4_375_000


def test_reasoning_tokens_are_part_of_the_completion_and_not_charged_twice() -> None:
    assert RATES.cost_pico_usd(Usage(prompt_tokens=0, completion_tokens=100, reasoning_tokens=80)) == 1_050_000_000


@given(usages(), usages())
def test_the_cost_of_a_sum_is_the_sum_of_the_costs(one: Usage, other: Usage) -> None:
    assert RATES.cost_pico_usd(one + other) == RATES.cost_pico_usd(one) + RATES.cost_pico_usd(other)


@given(usages())
def test_no_usage_within_the_limits_costs_more_than_the_worst_case(usage: Usage) -> None:
    worst = RATES.worst_case_pico_usd(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)
    assert 0 <= RATES.cost_pico_usd(usage) <= worst


@given(st.integers(0, 10**12), st.integers(1, 10**5))
def test_a_price_in_won_is_rounded_up_by_less_than_one_pico_dollar(price: int, krw_per_usd: int) -> None:
    pico = to_pico_usd_per_token(price, currency="KRW", krw_per_usd=krw_per_usd)
    assert 0 <= pico * krw_per_usd - price < krw_per_usd


def test_a_price_in_dollars_is_not_converted() -> None:
    assert to_pico_usd_per_token(3_500_000, currency="USD", krw_per_usd=1400) == 3_500_000
