"""Makes a built template start fast: SnapStart, or environments that are kept ready (``make deploy FAST_START=…``).

Both need published versions and an alias, and a version keeps the environment variables that it was published with. A
template that has the alias by default would let a parameter be changed without effect; this one is made for a
deployment, and every deployment publishes a version.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samtranslator.yaml_helper import yaml_parse

ALIAS = "live"
FUNCTION = "ChatFunction"


def apply(template: dict[str, Any], *, snap_start: bool, provisioned: int, release: str) -> dict[str, Any]:
    """``template`` with a chat function behind an alias. ``release`` is another text for each deployment."""
    properties = {
        **template["Resources"][FUNCTION]["Properties"],
        "AutoPublishAlias": ALIAS,
        "AutoPublishAliasAllProperties": True,
        "AutoPublishCodeSha256": release,
        "VersionDeletionPolicy": "Delete",
        **({"SnapStart": {"ApplyOn": "PublishedVersions"}} if snap_start else {}),
        **({"ProvisionedConcurrencyConfig": {"ProvisionedConcurrentExecutions": provisioned}} if provisioned else {}),
    }
    function = {**template["Resources"][FUNCTION], "Properties": properties}
    return {**template, "Resources": {**template["Resources"], FUNCTION: function}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrites the file that ``sam build`` has made."""
    parser = argparse.ArgumentParser(description="Makes a built template start fast.")
    parser.add_argument("way", help="'snapstart', or how many environments are kept ready")
    parser.add_argument("template", type=Path)
    given = parser.parse_args(arguments)
    if given.way != "snapstart" and not (given.way.isdecimal() and int(given.way) > 0):
        parser.error(f"{given.way!r} is neither 'snapstart' nor a number of environments")
    changed = apply(
        yaml_parse(given.template.read_text(encoding="utf-8")),
        snap_start=given.way == "snapstart",  # AWS does not combine the two
        provisioned=int(given.way) if given.way.isdecimal() else 0,
        release=f"{time.time_ns():x}",
    )
    given.template.write_text(json.dumps(changed, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
