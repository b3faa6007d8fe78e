"""As much of gigatoken as is used; its own types need a package of stubs."""

import numpy as np
from numpy.typing import NDArray

class BytesSource:
    def __init__(self, data: bytes) -> None: ...

class Tokenizer:
    @classmethod
    def from_json(cls, data: str) -> Tokenizer: ...
    def encode_batch_padded(
        self, inputs: BytesSource, pad_id: int, *, parallel: bool
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...
