"""What a generation is asked to do, on its way through JSON."""

from __future__ import annotations

import json
import subprocess
import sys

from trainer_app.core.generation_spec import GenerateSpec


def test_a_spec_survives_the_round_trip() -> None:
    spec = GenerateSpec(
        prompt_text="\u00e9\0\n", stop_sequences=("a", "b"), seed=2**32 - 1, top_k=0
    )
    assert GenerateSpec.from_json(spec.to_json()) == spec


def test_what_another_version_wrote_is_read() -> None:
    assert GenerateSpec.from_json(json.dumps({"top_k": 0, "beams": 4})) == GenerateSpec(top_k=0)


def test_the_web_process_can_read_it_without_torch() -> None:
    code = "import sys, trainer_app.core.generation_spec; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
