"""A corpus from a request's body to its file: streamed, written once, named by its digest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Final

from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import (
    Data,
    Epilogue,
    Event,
    Field,
    File,
    MultipartDecoder,
    NeedData,
    State,
)

from trainer_app.api.body import check_charset, check_encoding, check_framing, read_blocks
from trainer_app.api.errors import Detail, InvalidInput
from trainer_app.api.fields import name_of
from trainer_app.api.text_scan import Text, TextScan
from trainer_app.core.files import disk_full_named, fsync_directory
from trainer_app.errors import DiskFull, Unavailable
from trainer_app.room import free_bytes
from trainer_app.upload_folder import (
    corpus_path,
    exclusive,
    make_folder,
    mark_path,
    sweep,
    temporary,
)

if TYPE_CHECKING:
    from pathlib import Path

    from flask import Request
    from werkzeug.datastructures import Headers

    from trainer_app.store.corpora import Corpus

FIELD: Final = "file"
RAW_TYPES: Final = ("text/plain", "application/octet-stream")
# Of a multipart body beside the file: boundaries and headers; and of each of these by itself.
_OVERHEAD: Final = 65_536
_BESIDE: Final = {
    State.PREAMBLE: "before its first part",
    State.PART: "in the headers of a part",
    State.EPILOGUE: "after its last part",
}
# Of a part of a form, by which its bytes are the text's own.
_PLAIN: Final = {
    "Content-Encoding": frozenset({"identity"}),
    "Content-Transfer-Encoding": frozenset({"7bit", "8bit", "binary"}),
}


def store_upload(
    request: Request,
    folder: Path,
    limit: int,
    record: Callable[[Text], Corpus],
    unless_recorded: Callable[[str, Callable[[], None]], None],
) -> Corpus:
    """Write the corpus in the body to ``folder``/<sha256>.txt and record what it is.

    Raises the HTTP exceptions 400, 408, 413 and 415, CorpusEmpty, CorpusNotText, Unavailable
    where the disk fills up or ``folder`` is no folder, OSError. Whatever it raises, no file stays
    behind that is not recorded, unless the database is away, so that nobody can know: then
    ``clean_uploads`` removes it once that can be asked.
    ``unless_recorded`` calls what it is given where the digest is not.
    """
    check_framing(request)
    check_encoding(request)
    blocks = _limited(_content(request, limit), limit)
    try:
        with disk_full_named(folder):
            make_folder(folder)
            sweep(folder)
            _check_space(request, folder)
            with temporary(folder) as (path, file):
                text = _write(file, blocks)
                with exclusive(folder):
                    return _keep(path, folder, text, record, unless_recorded)
    except DiskFull as error:
        raise Unavailable("the disk has no space left for the corpus") from error


def _check_space(request: Request, folder: Path) -> None:
    """Refuse what the disk cannot hold before it is sent."""
    size, free = request.content_length or 0, free_bytes(folder)
    if size > free:
        raise RequestEntityTooLarge(f"the body has {size} bytes, and the disk {free} left")


def _keep(
    temporary: Path,
    folder: Path,
    text: Text,
    record: Callable[[Text], Corpus],
    unless_recorded: Callable[[str, Callable[[], None]], None],
) -> Corpus:
    """The file in its place and recorded, or neither."""
    final = corpus_path(folder, text.sha256)
    was_there = final.exists()
    # For clean_uploads, should this process be killed. What was there already is not this
    # upload's to take away; the mark of an earlier one, if any, stays until a row is there.
    unrecorded = mark_path(folder, text.sha256)
    if not was_there:
        unrecorded.touch()
    try:
        temporary.rename(final)
        fsync_directory(folder)
        corpus = record(text)
    except BaseException:
        if not was_there:
            # It may be recorded though ``record`` failed: the commit's answer was lost. Without a
            # database the file stays: a row without one would fail whatever reads it. So does the
            # mark then.
            with suppress(Unavailable, OSError):
                unless_recorded(text.sha256, lambda: final.unlink(missing_ok=True))
                unrecorded.unlink()
        raise
    with suppress(OSError):  # it is recorded: clean_uploads finds that, too
        unrecorded.unlink(missing_ok=True)
    return corpus


def _write(file: IO[bytes], blocks: Iterator[bytes]) -> Text:
    scan = TextScan()
    for block in blocks:
        scan.update(block)
        file.write(block)
    text = scan.finish()
    file.flush()
    os.fsync(file.fileno())
    return text


def _limited(blocks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    size = 0
    for block in blocks:
        size += len(block)
        if size > limit:
            raise RequestEntityTooLarge(f"a corpus must not be larger than {limit} bytes")
        yield block


def _content(request: Request, limit: int) -> Iterator[bytes]:
    if (request.content_length or 0) > limit + _OVERHEAD:
        raise RequestEntityTooLarge(f"a corpus must not be larger than {limit} bytes")
    check_charset(request.mimetype_params)
    if request.mimetype in RAW_TYPES:
        return read_blocks(request, limit)
    boundary = request.mimetype_params.get("boundary", "")
    if request.mimetype == "multipart/form-data" and boundary:
        return _file_of(_parts(request, boundary.encode("latin-1", "replace"), limit))
    raise UnsupportedMediaType(
        f"a corpus is sent as {', '.join(RAW_TYPES)}, or as the field {FIELD!r} of a "
        "multipart/form-data body with a boundary"
    )


def _parts(request: Request, boundary: bytes, limit: int) -> Iterator[Event]:
    """The events of a multipart body, parsed block by block without a temporary file."""
    decoder = MultipartDecoder(boundary)
    blocks = read_blocks(request, limit + _OVERHEAD)
    try:
        while not isinstance(event := _next_event(decoder), Epilogue):
            if isinstance(event, NeedData):
                decoder.receive_data(next(blocks, None))
            else:
                yield event
    except (ValueError, UnicodeDecodeError) as error:
        raise BadRequest("the multipart body is cut off or malformed") from error


def _next_event(decoder: MultipartDecoder) -> Event:
    """What comes next; raises RequestEntityTooLarge for too much beside the file.

    The decoder has a limit of its own, and would not say what has gone beyond it.
    """
    beside, held = _BESIDE.get(decoder.state), len(decoder.buffer)
    event = decoder.next_event()
    size = held if isinstance(event, NeedData) else held - len(decoder.buffer)
    if beside and size > _OVERHEAD:
        raise RequestEntityTooLarge(
            f"the multipart body must not have more than {_OVERHEAD} bytes {beside}"
        )
    return event


def _file_of(events: Iterator[Event]) -> Iterator[bytes]:
    """The bytes of the one field that there may be."""
    found = False
    for event in events:
        if isinstance(event, (Field, File)):
            if found or event.name != FIELD:
                raise InvalidInput([_detail(event)])
            check_charset(parse_options_header(event.headers.get("Content-Type"))[1])
            _check_plain(event.headers)
            found = True
        elif isinstance(event, Data):
            yield event.data
    if not found:
        raise InvalidInput([Detail(FIELD, "is missing")])


def _detail(part: Field | File) -> Detail:
    """What is wrong with a part that is not, or no more, the one to be."""
    name: str | None = part.name  # None where it has none, whatever the type says
    if name is None:
        return Detail(FIELD, f"one {FIELD!r} alone is taken, and no part without a name")
    return Detail(name_of(name), f"one {FIELD!r} alone is taken")


def _check_plain(headers: Headers) -> None:
    """Refuse a part whose bytes stand for others: what is stored would not be the text."""
    for name, plain in _PLAIN.items():
        for value in headers.getlist(name):
            if value.strip().lower() not in plain:
                raise UnsupportedMediaType(f"the file is sent as it is, without {name}")
