// GET /usage/summary, and what can go wrong with it. The wire's names end here.

const TIMEOUT_MS = 25_000;
// The page is …/v1/dashboard, this file …/v1/dashboard/<version>/api.js.
const BASE = new URL("../../", import.meta.url);

/** `kind`: refused, forbidden, throttled, server, offline, slow or odd. */
export class Failure extends Error {
  constructor(kind, { requestId = null, retryAfterS = 0 } = {}) {
    super(kind);
    Object.assign(this, { kind, requestId, retryAfterS });
  }
}

/** The base URL that apps are given: for the example on the empty page. */
export const baseUrl = BASE.href.replace(/\/$/, "");

export const api = { summary };

async function summary(key, signal) {
  const limit = AbortSignal.timeout(TIMEOUT_MS);
  let response, raw;
  try {
    response = await fetch(new URL("usage/summary", BASE), {
      headers: { Authorization: `Bearer ${key}` },
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal: AbortSignal.any([signal, limit]),
    });
    raw = await response.text();
  } catch {
    throw new Failure(limit.aborted ? "slow" : "offline");
  }
  if (!response.ok) throw refusal(response);
  try {
    return { raw, data: read(JSON.parse(raw)) };
  } catch {
    throw new Failure("odd");
  }
}

function refusal(response) {
  const requestId = response.headers.get("x-request-id") ?? "–";
  const retryAfterS = Number(response.headers.get("retry-after")) || 0;
  const kinds = { 401: "refused", 403: "forbidden", 429: "throttled" };
  return new Failure(kinds[response.status] ?? "server", { requestId, retryAfterS });
}

/** What the page works with: camelCase, null for what is unknown, lists that are always there. */
function read(body) {
  const { today, month } = body;
  const keyNames = new Map(body.keys.map((key) => [key.key_id, key.name]));
  return {
    generatedAt: body.generated_at,
    timeZone: body.time_zone,
    krwPerUsd: body.krw_per_usd,
    scope: body.scope,
    keyName: body.key?.name ?? null,
    isEmpty: month.requests === 0 && body.days.every((day) => day.requests === 0),
    today: {
      date: today.date,
      requests: today.requests,
      errors: today.errors,
      costUsd: today.cost_usd,
      promptTokens: today.prompt_tokens,
      completionTokens: today.completion_tokens,
      firstTokenMs: today.first_token_ms,
      latencyMs: today.latency_ms,
      lastWeekUsd: today.same_weekday_last_week_cost_usd ?? null,
      lastWeekDay: daysBefore(today.date, 7),
    },
    month: {
      month: month.month,
      requests: month.requests,
      costUsd: month.cost_usd,
      budgetUsd: month.budget_usd ?? null,
      reservedUsd: month.reserved_usd ?? 0,
      projectedUsd: month.projected_usd ?? null,
      lowUsd: month.projected_low_usd ?? null,
      highUsd: month.projected_high_usd ?? null,
      goneOn: month.exhausted_on ?? null,
    },
    days: body.days.map((day) => ({
      date: day.date,
      requests: day.requests,
      errors: day.errors,
      costUsd: day.cost_usd,
      models: day.models,
      firstTokenMs: day.first_token_ms,
      latencyMs: day.latency_ms,
    })),
    hours: body.hours.map((hour) => ({ requests: hour.requests, errors: hour.errors, costUsd: hour.cost_usd })),
    errors: countByCode(body.errors),
    keys: body.keys.map((key) => ({
      name: key.name ?? key.key_id,
      requests: key.requests,
      costUsd: key.cost_usd,
      budgetUsd: key.budget_usd ?? null,
      spentUsd: key.spent_usd ?? 0,
    })),
    users: body.users.map((user) => ({
      name: user.end_user,
      beside: keyNames.get(user.key_id) ?? user.key_id,
      requests: user.requests,
      costUsd: user.cost_usd,
      budgetUsd: null,
    })),
    recent: body.recent.map(readRequest),
    batches: body.batches?.map(readBatch) ?? null,
    health:
      body.health?.map((each) => ({
        deployment: each.deployment,
        state: each.state,
        retryAt: each.retry_at ?? null,
      })) ?? null,
  };
}

/** One line per code: the API tells apart what came of it, too. */
function countByCode(errors) {
  const counts = new Map();
  for (const { code, outcome, count } of errors)
    counts.set(code ?? outcome, (counts.get(code ?? outcome) ?? 0) + count);
  return [...counts].map(([code, count]) => ({ code, count })).sort((a, b) => b.count - a.count);
}

function readRequest(row) {
  return {
    id: row.request_id,
    at: row.at,
    keyName: row.key_name ?? row.key_id,
    endUser: row.end_user ?? null,
    modelAsked: row.model_asked,
    modelServed: row.model_served,
    deployment: row.deployment,
    outcome: row.outcome,
    errorCode: row.error_code ?? null,
    stream: row.stream,
    promptTokens: row.prompt_tokens,
    completionTokens: row.completion_tokens,
    cachedTokens: row.cached_tokens ?? 0,
    reasoningTokens: row.reasoning_tokens ?? 0,
    usageSource: row.usage_source,
    costUsd: row.cost_usd,
    firstTokenMs: row.first_token_ms ?? null,
    latencyMs: row.latency_ms,
    batchId: row.batch_id ?? null,
    attempts: row.attempts.map((attempt) => ({
      deployment: attempt.deployment,
      result: attempt.result,
      why: attempt.why ?? "",
      durationMs: attempt.duration_ms,
      waitedMs: attempt.waited_ms ?? 0,
      maybeBilled: attempt.maybe_billed ?? false,
    })),
  };
}

function readBatch(batch) {
  return {
    id: batch.id,
    status: batch.status,
    createdAt: batch.created_at,
    total: batch.request_counts.total,
    completed: batch.request_counts.completed,
    failed: batch.request_counts.failed,
  };
}

function daysBefore(day, count) {
  const at = new Date(`${day}T12:00:00Z`);
  at.setUTCDate(at.getUTCDate() - count);
  return at.toISOString().slice(0, 10);
}
