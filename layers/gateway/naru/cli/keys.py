"""``naru keys`` and ``naru budget``: calls of the admin API."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from naru.amounts import read_json, write_json
from naru.cli import NONE
from naru.cli.output import (
    CommandError,
    MisuseError,
    count,
    moment,
    note,
    show_facts,
    show_json,
    show_secret,
    show_table,
    usd,
)
from naru.cli.target import ADMIN_KEY, Target, find_target

# API Gateway gives up after 29 s.
_TIMEOUT_S = 35.0


# ── The admin API ──────────────────────────────────────────────────────────────────────────────────────────


class AdminApi:
    """Calls the admin API of one gateway."""

    def __init__(self, target: Target) -> None:
        self._target = target

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> AdminApi:
        return cls(find_target(ADMIN_KEY, arguments.base_url, arguments.admin_key, os.environ, Path.cwd()))

    def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The answer, with exact numbers.

        Raises :class:`~naru.cli.output.CommandError` with what the gateway says about a failure.
        """
        answer = self._send(method, f"admin/{path}", body, query)
        if isinstance(said := _json(answer), dict):
            return said
        raise self._strange(answer)

    def text(self, path: str, query: Mapping[str, Any]) -> str:
        """What a GET of a path beside the admin API's answers. Raises as :meth:`call`."""
        answer = self._send("GET", path, None, query)
        answer.encoding = "utf-8"
        return answer.text

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, query: Mapping[str, Any] | None
    ) -> httpx.Response:
        url = f"{self._target.base_url}/{path}"
        headers = {"Authorization": f"Bearer {self._target.key}", "Content-Type": "application/json"}
        content = write_json(body).encode() if body is not None else None
        try:
            answer = httpx.request(
                method, url, headers=headers, content=content, params=dict(query or {}), timeout=_TIMEOUT_S
            )
        except httpx.TimeoutException:
            raise CommandError(
                f"{url} has not answered within {_TIMEOUT_S:.0f} s; try again, and look before you repeat a change"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CommandError(
                f"cannot reach {self._target.base_url} ({error or type(error).__name__}); is the gateway there? "
                f"The address is from {self._target.source}"
            ) from None
        if answer.is_success:
            return answer
        said = _json(answer)
        refusal = said.get("error") if isinstance(said, dict) else None
        if isinstance(refusal, dict) and isinstance(refusal.get("message"), str):
            hint = f" (the admin key is from {self._target.source})" if answer.status_code in {401, 403} else ""
            raise CommandError(f"{refusal['message']}{hint}")
        raise self._strange(answer)

    def _strange(self, answer: httpx.Response) -> CommandError:
        return CommandError(
            f"{answer.url} answers {answer.status_code} with something that is no gateway of Naru's; the base URL ends in "
            f"/v1 and is from {self._target.source}"
        )


def _json(answer: httpx.Response) -> Any:
    try:
        return read_json(answer.content)
    except ValueError:
        return None


# ── Commands ───────────────────────────────────────────────────────────────────────────────────────────────


def create(arguments: argparse.Namespace) -> None:
    body = {"name": arguments.name, **_limits(arguments)}
    if arguments.shards is not None:
        body["shards"] = arguments.shards
    _show_created(arguments, AdminApi.of(arguments).call("POST", "keys", body))


def list_all(arguments: argparse.Namespace) -> None:
    api, found, after = AdminApi.of(arguments), [], None
    while True:
        page = api.call("GET", "keys", query={"limit": 100} | ({"after": after} if after else {}))
        found += page["data"]
        after = page["last_id"]
        if not page["has_more"]:
            break
    if not arguments.all:
        found = [key for key in found if key["status"] != "revoked"]
    if arguments.json:
        show_json({"object": "list", "data": found})
    elif not found:
        note("There are no keys yet. Make one: naru keys create NAME")
    else:
        headings = ("ID", "NAME", "STATUS", "BUDGET", "SPENT", "LEFT", "RPM", "TPM", "PARALLEL", "MODELS", "EXPIRES")
        show_table(headings, [_row(key) for key in found])


def show(arguments: argparse.Namespace) -> None:
    _show_key(arguments, AdminApi.of(arguments).call("GET", f"keys/{_key_id(arguments)}"))


def update(arguments: argparse.Namespace) -> None:
    body = _limits(arguments)
    if arguments.name is not None:
        body["name"] = arguments.name
    if arguments.enabled is not None:
        body["enabled"] = arguments.enabled
    if not body:
        raise MisuseError("nothing to change; see naru keys update --help")
    _show_key(arguments, AdminApi.of(arguments).call("PATCH", f"keys/{_key_id(arguments)}", body))


def rotate(arguments: argparse.Namespace) -> None:
    body = {"overlap_seconds": arguments.overlap}
    _show_created(arguments, AdminApi.of(arguments).call("POST", f"keys/{_key_id(arguments)}/rotate", body))


def revoke(arguments: argparse.Namespace) -> None:
    api, key_id = AdminApi.of(arguments), _key_id(arguments)
    if sys.stdin.isatty() and not arguments.yes:
        key = api.call("GET", f"keys/{key_id}")
        note(f"{key_id} ({key['name']}) has spent {usd(key['spent_usd'])} USD this month. Revoke it for good? [y/N]")
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            raise CommandError("not revoked")
    _show_key(arguments, api.call("DELETE", f"keys/{key_id}"))


def show_budget(arguments: argparse.Namespace) -> None:
    _show_organisation(arguments, AdminApi.of(arguments).call("GET", "organization"))


def set_budget(arguments: argparse.Namespace) -> None:
    body = {"budget_usd": _null(arguments.budget_usd)}
    if arguments.shards is not None:
        body["shards"] = arguments.shards
    _show_organisation(arguments, AdminApi.of(arguments).call("PATCH", "organization", body))


# ── What is sent ───────────────────────────────────────────────────────────────────────────────────────────


def _key_id(arguments: argparse.Namespace) -> str:
    key_id: str = arguments.key_id
    if key_id.startswith("sk-"):
        raise MisuseError(
            "that is a key itself, which should not be typed here; its id is key_ and the next 12 letters"
        )
    if not re.fullmatch(r"key_[a-z0-9]{12}", key_id):
        raise MisuseError(f"{key_id!r} is not the id of a key (key_…); 'naru keys list' shows them")
    return key_id


def _null(value: Any) -> Any:
    return None if value == NONE else value


def _limits(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as the API calls them."""
    names = ("budget_usd", "rpm", "tpm", "max_parallel", "user_budget_usd", "user_rpm")
    given = {name: getattr(arguments, name) for name in names} | {"expires_at": arguments.expires}
    body = {name: _null(value) for name, value in given.items() if value is not None}
    if arguments.models is not None:
        body["models"] = None if arguments.models == ["all"] else arguments.models
    if arguments.tags is not None:
        body["tags"] = None if arguments.tags == [NONE] else dict(tag for tag in arguments.tags if tag != NONE)
    if arguments.may_route is not None:
        body["may_route"] = arguments.may_route
    return body


# ── What is shown ──────────────────────────────────────────────────────────────────────────────────────────


def _show_created(arguments: argparse.Namespace, key: Mapping[str, Any]) -> None:
    if arguments.json:
        show_json(key)
        return
    notes = [f"{key['id']} ({key['name']}). The key is shown this once; keep it where the app finds it:"]
    if key["old_key_works_until"] is not None:
        notes.insert(0, f"The key before it works until {moment(key['old_key_works_until'])}.")
    show_secret(key["key"], *notes)


def _show_key(arguments: argparse.Namespace, key: Mapping[str, Any]) -> None:
    if arguments.json:
        show_json(key)
        return
    facts = {
        "id": key["id"],
        "name": key["name"],
        "status": key["status"],
        "created": moment(key["created_at"]),
        "expires": moment(key["expires_at"]),
        **({"revoked": moment(key["revoked_at"])} if key["revoked_at"] is not None else {}),
        **(
            {"old key": f"works until {moment(key['old_key_works_until'])}"}
            if key["old_key_works_until"] is not None
            else {}
        ),
        "models": ", ".join(key["models"]) if key["models"] is not None else "all",
        **_budget_facts(key),
        "limits": _limits_text(rpm=key["rpm"], tpm=key["tpm"], max_parallel=key["max_parallel"]),
        "end users": _limits_text(budget_usd=key["user_budget_usd"], rpm=key["user_rpm"]),
        **({"tags": ", ".join(f"{name}={text}" for name, text in key["tags"].items())} if key["tags"] else {}),
        **({"routing": "its requests may choose it"} if key["may_route"] else {}),
        **({"shards": str(key["shards"])} if key["shards"] > 1 else {}),
    }
    show_facts(facts)


def _show_organisation(arguments: argparse.Namespace, organisation: Mapping[str, Any]) -> None:
    if arguments.json:
        show_json(organisation)
        return
    shards = organisation["shards"]
    show_facts(_budget_facts(organisation) | ({"shards": str(shards)} if shards > 1 else {}))


def _budget_facts(meter: Mapping[str, Any]) -> dict[str, str]:
    budget, in_flight = meter["budget_usd"], meter["requests_in_flight"]
    facts = {
        "budget": f"{usd(budget)} USD a month" if budget is not None else "no limit",
        "spent": f"{usd(meter['spent_usd'])} USD in {meter['month']}",
        "reserved": f"{usd(meter['reserved_usd'])} USD for {in_flight} request{'' if in_flight == 1 else 's'} in flight",
    }
    if budget is not None:
        facts["left"] = f"{usd(meter['available_usd'])} USD until {moment(meter['budget_resets_at'])}"
    return facts


def _limits_text(**limits: Any) -> str:
    words = {"rpm": "requests a minute", "tpm": "tokens a minute", "max_parallel": "at once"}
    said = [
        f"{usd(limit)} USD a month" if name == "budget_usd" else f"{count(limit)} {words[name]}"
        for name, limit in limits.items()
        if limit is not None
    ]
    return ", ".join(said) or "no limit"


def _row(key: Mapping[str, Any]) -> tuple[str, ...]:
    limited = key["budget_usd"] is not None
    return (
        key["id"],
        key["name"],
        key["status"],
        usd(key["budget_usd"], short=True) if limited else "-",
        usd(key["spent_usd"], short=True),
        usd(key["available_usd"], short=True) if limited else "-",
        count(key["rpm"]),
        count(key["tpm"]),
        count(key["max_parallel"]),
        ",".join(key["models"]) if key["models"] is not None else "all",
        moment(key["expires_at"]),
    )
