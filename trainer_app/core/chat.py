"""Talk with a model that only continues texts: the talk is a text that it continues.

    User: the first message
    Assistant: the model's answer
    User: the latest message
    Assistant:

The model writes on from there until it begins a turn of the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from trainer_app.core.generate import generate
from trainer_app.core.generation_spec import GenerateSpec

if TYPE_CHECKING:
    from backends.contracts import Tokenizer
    from trainer_app.core.chat_spec import ChatSpec
    from trainer_app.core.loaded import LoadedModel

USER: Final = "User:"
ASSISTANT: Final = "Assistant:"
_NEXT_TURN: Final = f"\n{USER}"

Turn = tuple[str, str]  # what the user said, and the answer


def reply(
    loaded: LoadedModel,
    spec: ChatSpec,
    history: Sequence[Turn],
    *,
    should_stop: Callable[[], bool],
) -> str:
    """The model's answer to ``spec.message`` after the turns so far, without blanks around it."""
    size = loaded.model.config.max_seq_len
    # Room for the answer, but for half of the context at most: the window slides if need be.
    room = max(size - spec.max_new_tokens, size // 2)
    generation = generate(
        loaded,
        GenerateSpec(
            prompt_text=prompt(history, spec.message, loaded.tokenizer, tokens=room),
            max_new_tokens=spec.max_new_tokens,
            temperature=spec.temperature,
            top_k=spec.top_k,
            top_p=spec.top_p,
            seed=spec.seed,
            stop_sequences=(_NEXT_TURN,),
        ),
        should_stop=should_stop,
    )
    (answer,), (ended,) = generation.outputs, generation.eos_terminated
    return (answer if ended else _without_begun_turn(answer)).strip()


def _without_begun_turn(answer: str) -> str:
    """An answer that was cut off within the words that begin the user's next turn, without them."""
    begun = (_NEXT_TURN[:length] for length in range(len(_NEXT_TURN) - 1, 0, -1))
    return next((answer.removesuffix(part) for part in begun if answer.endswith(part)), answer)


def prompt(history: Sequence[Turn], message: str, tokenizer: Tokenizer, *, tokens: int) -> str:
    """The transcript that the model is to continue.

    The oldest turns are left out until it fits into ``tokens``; the message itself never is.
    """
    text = f"{USER} {message}\n{ASSISTANT}"
    for said, answered in reversed(history):
        longer = f"{USER} {said}\n{ASSISTANT} {answered}\n{text}"
        if len(tokenizer.encode(longer)) > tokens:
            break
        text = longer
    return text
