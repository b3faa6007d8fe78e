"""The errors: each has a code of its own that clients may rely on."""

import inspect
from typing import Final

import pytest

from trainer_app import errors
from trainer_app.errors import (
    Conflict,
    FieldError,
    NotFound,
    TrainerError,
    UserError,
    first_line,
)

CLASSES: Final = [
    item
    for _, item in inspect.getmembers(errors, inspect.isclass)
    if issubclass(item, TrainerError)
]


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_says_in_one_sentence_what_happened(error: type[TrainerError]) -> None:
    assert error.__doc__ is not None
    assert error.__doc__.splitlines()[0].endswith(".")


@pytest.mark.parametrize("error", CLASSES)
def test_a_code_is_written_in_capitals(error: type[TrainerError]) -> None:
    assert error.code.replace("_", "").isalpha()
    assert error.code == error.code.upper()


@pytest.mark.parametrize("parent", [UserError, NotFound, Conflict])
def test_the_kinds_of_an_error_can_be_told_apart_by_their_codes(
    parent: type[TrainerError],
) -> None:
    codes = [error.code for error in CLASSES if issubclass(error, parent)]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("no compiler\nTraceback ...", "no compiler"),
        ("\n\n  cc: no \n", "cc: no"),
        ("", "ValueError"),
    ],
)
def test_of_a_librarys_error_the_first_line_is_told(said: str, line: str) -> None:
    assert first_line(ValueError(said)) == line


def test_the_message_is_what_the_error_reads_as() -> None:
    error = UserError("the corpus holds 3 tokens; 8 are needed")
    assert str(error) == error.message == "the corpus holds 3 tokens; 8 are needed"


def test_a_field_error_names_its_field() -> None:
    error = FieldError("seed", "-1 is not in 0..4294967295")
    assert error.field == "seed"
    assert error.reason == "-1 is not in 0..4294967295"
    assert str(error) == "seed: -1 is not in 0..4294967295"
