"""A usage summary of a month like many others: made by a seed, so that a picture or a test can be repeated."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

ZONE = ZoneInfo("Asia/Seoul")
NOW = datetime(2026, 11, 23, 15, 42, 7, tzinfo=ZONE)
MODELS = {
    "hyperclova-x-omni": 5.2,
    "hyperclova-x-omni-fast": 2.1,
    "HCX-007": 2.6,
    "claude-sonnet-4-5": 3.4,
    "gpt-4.1": 1.2,
}


def summary(*, budget_usd: float = 500.0) -> dict[str, Any]:
    """Thirty days: busy weekdays, quiet weekends, an outage on the 12th, a spike on the 18th."""
    rng = random.Random(7)
    today = NOW.date()
    days = [_day(rng, today - timedelta(days=back), share=0.62 if back == 0 else 1.0) for back in range(29, -1, -1)]
    month = [day for day in days if day["date"].startswith("2026-11")]
    spent = round(sum(day["cost_usd"] for day in month), 6)
    return {
        "object": "usage.summary",
        "generated_at": int(NOW.astimezone(UTC).timestamp()),
        "time_zone": "Asia/Seoul",
        "krw_per_usd": 1400,
        "scope": "organization",
        "today": {
            **{name: days[-1][name] for name in ("date", "requests", "errors", "cost_usd", "latency_ms")},
            "first_token_ms": {"p50": 412, "p95": 1180, "p99": 2240},
            "prompt_tokens": 2_412_000,
            "completion_tokens": 1_120_400,
            "same_weekday_last_week_cost_usd": round(days[-1]["cost_usd"] * 0.88, 6),
        },
        "month": {
            "month": "2026-11",
            "requests": sum(day["requests"] for day in month),
            "cost_usd": spent,
            "budget_usd": budget_usd,
            "reserved_usd": 3.2,
            "projected_usd": round(spent * 1.31, 2),
            "projected_low_usd": round(spent * 1.24, 2),
            "projected_high_usd": round(spent * 1.4, 2),
            "exhausted_on": "2026-11-28" if spent * 1.31 > budget_usd else None,
        },
        "days": days,
        "hours": [_hour(rng, hour) for hour in range(16)],
        "errors": [
            {"code": "upstream_rate_limited", "outcome": "failed", "count": 31},
            {"code": "upstream_timeout", "outcome": "failed", "count": 9},
            {"code": "upstream_timeout", "outcome": "truncated", "count": 3},
            {"code": "upstream_unavailable", "outcome": "failed", "count": 5},
            {"code": None, "outcome": "unknown", "count": 2},
        ],
        "keys": [
            {"key_id": "key_a", "name": "mobile app", "requests": 31_204, "cost_usd": spent * 0.55, "budget_usd": 250, "spent_usd": spent * 0.55},
            {"key_id": "key_b", "name": "웹 서버", "requests": 12_880, "cost_usd": spent * 0.31, "budget_usd": 120, "spent_usd": spent * 0.31},
            {"key_id": "key_c", "name": "nightly batch", "requests": 9_022, "cost_usd": spent * 0.14, "budget_usd": None, "spent_usd": spent * 0.14},
        ],
        "users": [
            {"key_id": "key_a", "end_user": f"user-{rng.randrange(10**4):04}", "requests": round(900 * 0.8**rank), "cost_usd": 6.1 * 0.83**rank}
            for rank in range(8)
        ],
        "recent": [_request(rng, position) for position in range(50)],
        "batches": [
            {"id": "batch_0692f1c7d3a04b9e", "status": "in_progress", "created_at": 1795400000, "request_counts": {"total": 12000, "completed": 7431, "failed": 36}},
            {"id": "batch_0692e80b1f5c7aa1", "status": "completed", "created_at": 1795320000, "request_counts": {"total": 8000, "completed": 7998, "failed": 2}},
            {"id": "batch_0692d1029be311f0", "status": "expired", "created_at": 1795220000, "request_counts": {"total": 500, "completed": 410, "failed": 0}},
        ],
        "health": [
            {"deployment": "holysheep/hyperclova-x-omni", "state": "closed"},
            {"deployment": "holysheep/hyperclova-x-omni-fast", "state": "closed"},
            {"deployment": "clovastudio/HCX-007", "state": "open", "retry_at": 1795405332},
            {"deployment": "holysheep/claude-sonnet-4-5", "state": "half_open"},
            {"deployment": "holysheep/gpt-4.1", "state": "closed"},
        ],
    }  # fmt: skip


def _day(rng: random.Random, day: date, *, share: float) -> dict[str, Any]:
    busy = (0.34 if day.weekday() >= 5 else 1.0) * share * (2.4 if day.day == 18 else 1.0)
    requests = round(2100 * busy * rng.uniform(0.9, 1.1))
    outage = day.day == 12 and day.month == 11
    models = {name: round(usd * busy * rng.uniform(0.8, 1.2), 6) for name, usd in MODELS.items()}
    slow = 2.6 if outage else 1.0
    return {
        "date": day.isoformat(),
        "requests": requests,
        "errors": round(requests * (0.21 if outage else rng.uniform(0.004, 0.016))),
        "cost_usd": round(sum(models.values()), 6),
        "models": models,
        "first_token_ms": {name: round(ms * slow * rng.uniform(0.92, 1.1)) for name, ms in (("p50", 410), ("p95", 1150), ("p99", 2100))},
        "latency_ms": {name: round(ms * slow * rng.uniform(0.92, 1.1)) for name, ms in (("p50", 3100), ("p95", 9800), ("p99", 15200))},
    }  # fmt: skip


def _hour(rng: random.Random, hour: int) -> dict[str, Any]:
    busy = [3, 2, 1, 1, 1, 2, 6, 20, 60, 110, 130, 120, 80, 125, 140, 90][hour]
    requests = round(busy * rng.uniform(0.85, 1.15))
    starts = datetime(NOW.year, NOW.month, NOW.day, hour, tzinfo=ZONE)
    return {
        "hour": int(starts.timestamp()),
        "requests": requests,
        "errors": 7 if hour == 13 else 0,
        "cost_usd": round(requests * 0.0067 * rng.uniform(0.8, 1.2), 6),
    }


def _request(rng: random.Random, position: int) -> dict[str, Any]:
    at = int(NOW.timestamp()) - 40 - position * 37
    model = rng.choice(list(MODELS))
    deployment = f"holysheep/{model}" if model != "HCX-007" else "clovastudio/HCX-007"
    attempts: list[dict[str, Any]] = [
        {"deployment": deployment, "result": "ok", "duration_ms": rng.randrange(900, 9000)}
    ]
    outcome, error, served = "completed", None, model
    if position == 3:
        attempts = [
            {"deployment": deployment, "result": "upstream_rate_limited", "duration_ms": 180},
            {"deployment": deployment, "result": "upstream_timeout", "duration_ms": 4200, "why": "again", "waited_ms": 900, "maybe_billed": True},
            {"deployment": "holysheep/hyperclova-x-omni-fast", "result": "ok", "duration_ms": 2400, "why": "fallback"},
        ]  # fmt: skip
        served = "hyperclova-x-omni-fast"
    if position in {7, 8}:
        attempts[0]["result"], outcome, error = "upstream_unavailable", "failed", "upstream_unavailable"
    if position == 11:
        outcome = "truncated"
    prompt, completion = rng.randrange(80, 3000), 0 if outcome == "failed" else rng.randrange(40, 900)
    return {
        "request_id": f"req_{at:08x}{rng.randrange(16**12):012x}",
        "at": at,
        "key_id": "key_a",
        "key_name": rng.choice(["mobile app", "웹 서버", "nightly batch"]),
        "end_user": f"user-{rng.randrange(10**4):04}",
        "model_asked": model,
        "model_served": served,
        "deployment": attempts[-1]["deployment"],
        "outcome": outcome,
        "error_code": error,
        "stream": position % 3 != 0,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "usage_source": "estimated" if position == 11 else "reported",
        "cost_usd": round(prompt * 3.5e-6 + completion * 10.5e-6, 9),
        "first_token_ms": None if outcome == "failed" or position % 3 == 0 else rng.randrange(240, 1400),
        "latency_ms": sum(attempt["duration_ms"] + attempt.get("waited_ms", 0) for attempt in attempts),
        "attempts": attempts,
    }
