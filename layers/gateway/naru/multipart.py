"""Forms as they come in an HTTP body: multipart/form-data (RFC 7578)."""

from __future__ import annotations

from dataclasses import dataclass

from naru.errors import InvalidRequestError

_MAX_FIELDS = 50


@dataclass(slots=True)
class Part:
    """One field of a form; ``filename`` is there for files."""

    name: str = ""
    filename: str | None = None
    content: bytes = b""

    def text(self) -> str:
        """The content of a field that is no file. Raises :class:`~naru.errors.InvalidRequestError`."""
        try:
            return self.content.decode()
        except UnicodeDecodeError:
            raise InvalidRequestError(f"Invalid value for '{self.name}': it is not UTF-8.", param=self.name) from None


def parse_form(body: bytes, content_type: str | None) -> dict[str, Part]:
    """The fields of a form by name.

    Raises :class:`~naru.errors.InvalidRequestError` for what is no form, and for a field that has no name or comes twice.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    media_type, options = parse_options_header(content_type or "")
    if media_type != b"multipart/form-data" or not (boundary := options.get(b"boundary")):
        raise InvalidRequestError(
            "Send the file as multipart/form-data, with the fields 'purpose' and 'file', as the SDKs do."
        )
    collector = _Collector()
    try:
        parser = MultipartParser(boundary, collector.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequestError(f"The form cannot be read: {error}.") from None
    if not collector.ended:
        raise InvalidRequestError("The form cannot be read: its end is missing.")
    form: dict[str, Part] = {}
    for part in collector.parts:
        if not part.name:
            raise InvalidRequestError("The form cannot be read: a field has no name.")
        if part.name in form:
            raise InvalidRequestError(
                f"Duplicate parameter: '{part.name[:64]}' is there twice. Send it once.",
                param=part.name[:64],
                code="duplicate_parameter",
            )
        form[part.name] = part
    return form


class _Collector:
    """Puts together what the parser finds."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._pieces: list[bytes] = []
        self._name = b""
        self._value = b""

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == _MAX_FIELDS:
            raise InvalidRequestError(f"The form has more than {_MAX_FIELDS} fields.")
        self.parts.append(Part())
        self._pieces = []

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        from python_multipart.multipart import parse_options_header

        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self.parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")
            if (filename := options.get(b"filename")) is not None:
                self.parts[-1].filename = filename.decode("utf-8", "replace")
        self._name, self._value = b"", b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def _end_part(self) -> None:
        self.parts[-1].content = b"".join(self._pieces)

    def _end(self) -> None:
        self.ended = True
