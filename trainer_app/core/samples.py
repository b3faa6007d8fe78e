"""Texts that the model in training writes, for a person to read in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from trainer_app.core.generate import generate
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.loaded import LoadedModel

if TYPE_CHECKING:
    from backends.contracts import CausalModel, Tokenizer
    from trainer_app.core.observer import Observer

SAMPLE_TOKENS: Final = 64


def continue_prompt(
    model: CausalModel,
    tokenizer: Tokenizer,
    *,
    prompt: str,
    seed: int,
    device: str,
    observer: Observer,
) -> None:
    """Tell the observer how the model goes on after a prompt; training is not disturbed."""
    loaded = LoadedModel(model=model, tokenizer=tokenizer, device=device)
    spec = GenerateSpec(prompt_text=prompt, max_new_tokens=SAMPLE_TOKENS, seed=seed)
    with torch.random.fork_rng():
        generation = generate(loaded, spec, should_stop=lambda: observer.should_stop() is not None)
    observer.on_message(f"sample: {prompt!r} -> {generation.outputs[0]!r}")
