"""Where the catalog comes from: the layer, or an object in S3 that the operator may replace at any time."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from naru.catalog import BUILT_IN, Catalog, load, parse
from naru.errors import CatalogError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3.client import S3Client

logger = logging.getLogger(__name__)

_FRESH_S = 60.0


class CatalogSource:
    """The catalog in force. A new one in S3 is picked up within a minute; one that is wrong is not used, and the
    one before stays, because a typing error must not stop every app of the team.
    """

    def __init__(self, uri: str, new_s3_client: Callable[[], S3Client]) -> None:
        self._uri = uri
        self._new_s3_client = new_s3_client
        self._s3: S3Client | None = None
        self._etag = ""
        self._read_at_s = float("-inf")
        self._catalog: Catalog | None = None if uri else load(BUILT_IN)

    async def current(self) -> Catalog:
        """The catalog in force.

        Raises :class:`~naru.errors.StoreUnavailableError` when there has been none yet that could be read.
        """
        if self._uri and time.monotonic() - self._read_at_s > _FRESH_S:
            await asyncio.to_thread(self._refresh)
        if self._catalog is None:
            raise StoreUnavailableError("The gateway has no catalog of models at the moment. Tell the operator.")
        return self._catalog

    def _refresh(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        if self._s3 is None:
            self._s3 = self._new_s3_client()
        location = urlsplit(self._uri)
        request: dict[str, Any] = {"Bucket": location.netloc, "Key": location.path.lstrip("/")}
        if self._etag:
            request["IfNoneMatch"] = self._etag
        try:
            answer = self._s3.get_object(**request)
            self._catalog = parse(answer["Body"].read().decode(), source=self._uri)
            self._etag = answer["ETag"]
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 304:
                self._complain(error)
                return
        except (BotoCoreError, CatalogError, UnicodeDecodeError) as error:
            self._complain(error)
            return
        self._read_at_s = time.monotonic()

    def _complain(self, error: Exception) -> None:
        if self._catalog is not None:
            # Ask again in a minute, not with every request.
            self._read_at_s = time.monotonic()
        logger.error(
            "catalog cannot be used",
            extra={
                "catalog_uri": self._uri,
                "reason": str(error),
                "in_force": self._catalog.version if self._catalog else None,
            },
        )
