"""The environment of a function's process."""

from __future__ import annotations

import os
import secrets
import time

from local.emulator import REGION
from local.stack import Function

# So that a developer behind a proxy can reach real providers; AWS itself is never reached.
_PASSED_ON = ("PATH", "HOME", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")


def of(function: Function, endpoint_url: str) -> dict[str, str]:
    """What Lambda sets for a function (AWS: "Defined runtime environment variables"), and the way to the emulator."""
    return {
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_FORMAT": function.log_format,
        **({"AWS_LAMBDA_LOG_LEVEL": "INFO"} if function.log_format == "JSON" else {}),
        "AWS_LAMBDA_LOG_GROUP_NAME": function.log_group,
        "AWS_LAMBDA_LOG_STREAM_NAME": f"{time.strftime('%Y/%m/%d')}/[$LATEST]{secrets.token_hex(16)}",
        "LAMBDA_TASK_ROOT": str(function.folder),
        "_HANDLER": function.handler,
        "PYTHONPATH": os.pathsep.join(map(str, [function.folder, *function.layer_folders])),
        **function.environment,
    }
