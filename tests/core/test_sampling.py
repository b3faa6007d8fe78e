"""The next token, as asked."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.sampling import NONE, Sampler

# The tokens that no text has would win, could they be chosen.
PROBABILITIES = torch.tensor([0.0, 0.0, 0.0, 0.1, 0.4, 0.2, 0.3])
LOGITS = PROBABILITIES.log().nan_to_num(neginf=50.0)


def drawn(spec: GenerateSpec, draws: int = 2000) -> dict[int, float]:
    """How often each token was chosen."""
    ids_B = Sampler(spec, "cpu").choose(LOGITS.expand(draws, -1).clone())
    return {token_id: count / draws for token_id, count in sorted(Counter(ids_B.tolist()).items())}


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1e-300])
def test_without_temperature_the_likeliest_token_is_chosen(temperature: float) -> None:
    assert drawn(GenerateSpec(temperature=temperature)) == {4: 1.0}


@pytest.mark.parametrize("top_k", [0, 50, 4, 7])
def test_tokens_come_as_often_as_they_are_likely(top_k: int) -> None:
    expected = {3: 0.1, 4: 0.4, 5: 0.2, 6: 0.3}
    assert drawn(GenerateSpec(top_k=top_k, seed=1)) == pytest.approx(expected, abs=0.04)


def test_a_top_k_of_0_is_no_limit_and_not_taken_for_the_usual_50() -> None:
    equal_BV = torch.zeros(4_000, 204)
    for top_k, most in ((0, 200), (50, 50)):
        ids_B = Sampler(GenerateSpec(top_k=top_k, seed=1), "cpu").choose(equal_BV.clone())
        assert len(set(ids_B.tolist())) == pytest.approx(most, rel=0.03)


def test_temperature_sharpens_and_flattens() -> None:
    squared = {3: 1 / 30, 4: 16 / 30, 5: 4 / 30, 6: 9 / 30}
    assert drawn(GenerateSpec(temperature=0.5, seed=1)) == pytest.approx(squared, abs=0.04)
    flat = drawn(GenerateSpec(temperature=2.0, seed=1))
    assert flat[3] == pytest.approx(0.1**0.5 / (PROBABILITIES**0.5).sum().item(), abs=0.04)


@pytest.mark.parametrize("temperature", [2e-5, 1e-4])
def test_a_tiny_temperature_does_not_overflow(temperature: float) -> None:
    assert drawn(GenerateSpec(temperature=temperature)) == {4: 1.0}


@pytest.mark.parametrize(("top_k", "kept"), [(1, [4]), (2, [4, 6]), (3, [4, 5, 6])])
def test_top_k_keeps_the_likeliest(top_k: int, kept: list[int]) -> None:
    assert list(drawn(GenerateSpec(top_k=top_k, seed=1))) == kept


@pytest.mark.parametrize("top_k", [0, 6])
@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.0, [4]), (0.39, [4]), (0.41, [4, 6]), (0.71, [4, 5, 6]), (1.0, [3, 4, 5, 6])],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(
    top_k: int, top_p: float, kept: list[int]
) -> None:
    assert list(drawn(GenerateSpec(top_k=top_k, top_p=top_p, seed=1))) == kept


def test_top_p_counts_among_the_top_k() -> None:
    assert list(drawn(GenerateSpec(top_k=2, top_p=0.5, seed=1))) == [4]  # 4/7 of the two


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize(
    "spec",
    [
        GenerateSpec(temperature=0.0),
        GenerateSpec(seed=1),
        GenerateSpec(seed=1, top_k=0),
        GenerateSpec(seed=1, top_k=0, top_p=0.9),
        GenerateSpec(seed=1, top_k=3, top_p=0.9),
    ],
)
def test_a_row_of_logits_that_are_not_finite_gives_no_id_and_leaves_the_others_theirs(
    spec: GenerateSpec, wrong: float
) -> None:
    sound_BV = LOGITS.expand(3, -1).clone()
    expected = Sampler(spec, "cpu").choose(sound_BV.clone()).tolist()
    broken_BV = sound_BV.clone()
    broken_BV[1, 5] = wrong
    assert Sampler(spec, "cpu").choose(broken_BV).tolist() == [expected[0], NONE, expected[2]]
    broken_BV[1] = -math.inf
    assert Sampler(spec, "cpu").choose(broken_BV).tolist() == [expected[0], NONE, expected[2]]


def test_the_seed_decides_and_no_seed_surprises() -> None:
    def draw(seed: int | None) -> list[int]:
        torch.manual_seed(0)  # of no effect
        sampler = Sampler(GenerateSpec(seed=seed), "cpu")
        ids: list[int] = sampler.choose(LOGITS.expand(100, -1).clone()).tolist()
        return ids

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)
    assert draw(None) != draw(None)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    drawn(GenerateSpec(seed=1))
    drawn(GenerateSpec(seed=None))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.9), (50, 1.0)])
def test_with_a_seed_a_sequence_draws_its_own_numbers_whichever_are_left(
    top_k: int, top_p: float
) -> None:
    spec = GenerateSpec(seed=7, num_return_sequences=100, top_k=top_k, top_p=top_p)
    all_left, some_left = (Sampler(spec, "cpu") for _ in range(2))
    rows = torch.arange(100)
    for kept in (range(100), range(3, 100, 2), range(0, 49, 5)):
        if len(kept) < len(rows):
            some_left.keep(kept)
            rows = rows[list(kept)]
        drawn_N = all_left.choose(LOGITS.expand(100, -1).clone())
        drawn_B = some_left.choose(LOGITS.expand(len(rows), -1).clone())
        assert drawn_B.tolist() == drawn_N[rows].tolist()


def test_without_a_seed_those_that_are_left_draw_alone() -> None:
    sampler = Sampler(GenerateSpec(num_return_sequences=100), "cpu")
    sampler.keep([1, 5])
    assert len(sampler.choose(LOGITS.expand(2, -1).clone())) == 2
