"""Texts that a request names as a file under the corpus root."""

from __future__ import annotations

from trainer_app.api import current
from trainer_app.api.errors import Detail, InvalidInput
from trainer_app.api.fields import LONGEST_TEXT
from trainer_app.api.text_scan import BYTE_ORDER_MARK
from trainer_app.errors import DataNotFound
from trainer_app.safe_paths import open_beneath


def read_text(field: str, name: str) -> str:
    """The text of a file under the corpus root; ``field`` is where its name came from.

    Raises DataNotFound, in the same words for what is missing and what is refused, and
    InvalidInput for a file that is too large or no text.
    """
    try:
        file = open_beneath(current.settings().paths.corpus, name)
    except FileNotFoundError:
        raise DataNotFound(f"{field}: there is no such file under the corpus root") from None
    with file:
        data = file.read(LONGEST_TEXT + 1)
    if len(data) > LONGEST_TEXT:
        raise InvalidInput([Detail(field, f"the file is larger than {LONGEST_TEXT} bytes")])
    try:
        text = data.decode().removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        reason = f"the file is not UTF-8 text: bad byte at byte {error.start}"
        raise InvalidInput([Detail(field, reason)]) from None
    if "\0" in text:
        raise InvalidInput([Detail(field, "the file contains NUL")])
    return text
