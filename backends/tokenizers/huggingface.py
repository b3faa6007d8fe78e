"""What the kinds that live in a tokenizer.json share: its settings and its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from backends.contracts import SPECIAL_TOKENS
from backends.json_files import read_plain
from trainer_app.errors import ModelIncompatible

TOKENIZER_FILE: Final = "tokenizer.json"
CONFIG_FILE: Final = "tokenizer_config.json"
LARGEST: Final = 1 << 30  # bytes: more than a million tokens and all their merges take


def text_only(tokenizer: Tokenizer) -> Tokenizer:
    """Take the names of special tokens in a text for the text that they are.

    tokenizer.json has no room for this setting; in tokenizer_config.json transformers calls it
    ``split_special_tokens``.
    """
    tokenizer.encode_special_tokens = True
    return tokenizer


def save(tokenizer: Tokenizer, directory: Path, *, kind: str) -> None:
    """Write the two files that ``AutoTokenizer.from_pretrained`` reads; raises OSError."""
    pad, unk, bos, eos = SPECIAL_TOKENS
    config = {
        "bos_token": bos,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "pad_token": pad,
        "split_special_tokens": True,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "trainer_tokenizer_kind": kind,  # ours: the registry's name of what reads it back
        "unk_token": unk,
    }
    # Written here, not by the library, so that an error of the disk is an OSError.
    (directory / TOKENIZER_FILE).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    (directory / CONFIG_FILE).write_text(
        json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def load(directory: Path, *, model: str, fall_backs: Sequence[str] = ("",)) -> Tokenizer:
    """The tokenizer of a folder whose model is of the class ``model``.

    ``fall_backs``: what it may do with what it does not know: "byte" spells it in bytes, "unk"
    makes one [UNK] of all of it.

    Raises ModelIncompatible where there is none, or where the special tokens have other ids.
    """
    tokenizer = _parsed(read_plain(directory / TOKENIZER_FILE, LARGEST))
    found = _described(type(tokenizer.model).__name__, fall_back_of(tokenizer))
    wanted = [_described(model, fall_back) for fall_back in fall_backs]
    if found not in wanted:
        raise ModelIncompatible(f"{TOKENIZER_FILE} holds a {found}, not a {' or '.join(wanted)}")
    for token_id, token in enumerate(SPECIAL_TOKENS):
        if tokenizer.token_to_id(token) != token_id:
            raise ModelIncompatible(f"{TOKENIZER_FILE}: {token} has not the id {token_id}")
    ids = tokenizer.get_vocab().values()
    if sorted(ids) != list(range(len(ids))):  # they are rows of tables that have no others
        raise ModelIncompatible(
            f"{TOKENIZER_FILE}: the ids of its {len(ids)} tokens are not 0 to {len(ids) - 1}"
        )
    return text_only(tokenizer)


def _parsed(content: bytes) -> Tokenizer:
    try:
        return Tokenizer.from_str(content.decode())
    except UnicodeDecodeError as error:
        raise ModelIncompatible(f"{TOKENIZER_FILE} cannot be read: {error}") from error
    except Exception as error:
        # The library raises bare Exceptions for a bad file; whatever interrupts a job has a class.
        if type(error) is not Exception:
            raise
        raise ModelIncompatible(f"{TOKENIZER_FILE} cannot be read: {error}") from error


def fall_back_of(tokenizer: Tokenizer) -> str:
    """ "byte", "unk" or "", as in ``load``."""
    if getattr(tokenizer.model, "byte_fallback", False):
        return "byte"
    return "unk" if getattr(tokenizer.model, "fuse_unk", False) else ""


def _described(model: str, fall_back: str) -> str:
    return f"{model} with {fall_back} fall-back" if fall_back else model
