"""What the examples of the OpenAPI document tell of: one corpus, one tokenizer, one run.

Each field's example stands beside the field; what several of them name is here.
"""

from __future__ import annotations

from typing import Final

RUN_ID: Final = "run-01k9v3m0e8xq6h7w2c4b5d8f9g"
TOKENIZER_ID: Final = "english-8k"
CORPUS_ID: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
GENERATE_ID: Final = "gen-01k9v4c2r5tq8m3n6p9s1v4x7z"
SCORE_ID: Final = "score-01k9v4cq3s6vt9x2a5d8g1j4m7"
EVALUATE_ID: Final = "eval-01k9v4bn8w1y4b7e0h3k6n9q2t"
TURN_ID: Final = "chat-01k9v4d7h3mr6t9w2z5c8f1j4n"
SESSION_ID: Final = "session-01k9v4d7h2kq5r8t1w4y7a0c3e"
HTTP_REQUEST_ID: Final = "5f3c9a2e"
MANIFEST_SHA256: Final = "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"
LOSS_CHAIN: Final = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
WEIGHTS_SHA256: Final = "fd61a03af4f77d870fc21e05e7e80678095c92d808cfb3b5c279ee04c74aca13"
ARTIFACTS: Final = "/var/lib/trainer/artifacts"
PROMPT: Final = "Once upon a time"
QUESTION: Final = "What did the king do?"
ANSWER: Final = "He had three daughters."

# The run's moments, in unix seconds.
UPLOADED_AT: Final = 1_767_225_600.25
POSTED_AT: Final = 1_767_225_900.5
STARTED_AT: Final = 1_767_225_901.75
COMPLETED_AT: Final = 1_767_225_947.0
STEPS: Final = 171
