"""Muon and AdamW as one optimizer."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from backends.contracts import CausalModel, ModelConfig
from backends.loading import model_family
from backends.registry import MODEL_FAMILIES
from tests.plain_training import torch_muon
from trainer_app.core import muon
from trainer_app.core.muon import MOMENTUM, Combined, Muon, hidden_matrices, orthogonalized
from trainer_app.core.optim import make_optimizer
from trainer_app.core.spec import TrainSpec

SPEC = TrainSpec(corpus_sha256="", optimizer="muon", learning_rate=0.01)


def model(family: str) -> CausalModel:
    torch.manual_seed(0)
    config = ModelConfig(family=family, size="tiny", vocab_size=300, max_seq_len=16)
    return model_family(family).build(config)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Two steps on gradients that depend on the weights alone."""
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = parameter.detach().cos()
        optimizer.step()


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_muon_has_every_matrix_between_embeddings_and_head(family: str) -> None:
    built = model(family)
    names = {id(parameter): name for name, parameter in built.named_parameters()}
    found = {names[id(parameter)] for parameter in hidden_matrices(built)}
    assert found
    for name, parameter in built.named_parameters():
        inner = name.startswith(("h.", "lstm.")) and parameter.dim() == 2
        assert (name in found) == inner, name


@pytest.mark.parametrize(
    ("family", "packed"),
    [("gpt2", {(128, 128, 128)}), ("llama", {(128, 64, 64), (352, 352)}), ("char_lstm", set())],
)
def test_the_steps_are_those_of_torch_muon_on_each_matrix_and_torch_adamw_apart(
    family: str, packed: set[tuple[int, ...]]
) -> None:
    together, apart = model(family), model(family)
    assert {*apart.packed_rows().values()} == packed
    before = deepcopy(together.state_dict())
    learn(together, make_optimizer(together, SPEC))

    matrices = hidden_matrices(apart)
    others = [p for p in apart.parameters() if all(p is not matrix for matrix in matrices)]
    groups: list[dict[str, object]] = [
        {"params": [p for p in others if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in others if p.dim() == 1], "weight_decay": 0.0},
    ]
    muon = torch_muon(apart, lr=0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), fused=True)
    for _ in range(2):
        for parameter in apart.parameters():
            parameter.grad = parameter.detach().cos()
        muon.step()
        adamw.step()

    for (name, one), other in zip(together.named_parameters(), apart.parameters(), strict=True):
        # halves, multiplied in another order: far less than what two steps change
        difference = (one - other).norm() / (one - before[name]).norm()
        assert difference < 0.02, name


def test_a_loaded_state_is_the_one_that_is_worked_on() -> None:
    whole, halves = model("gpt2"), model("gpt2")
    optimizer = make_optimizer(whole, SPEC)
    learn(whole, optimizer)
    learn(whole, optimizer)

    first = make_optimizer(halves, SPEC)
    learn(halves, first)
    second = make_optimizer(halves, replace(SPEC, learning_rate=1.0))
    second.load_state_dict(first.state_dict())
    for group in second.param_groups:
        group["lr"] = 0.01
    learn(halves, second)

    for one, other in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_step_that_overflowed_changes_nothing() -> None:
    built, alike = model("gpt2"), model("gpt2")
    optimizer, usual = make_optimizer(built, SPEC), make_optimizer(alike, SPEC)
    assert isinstance(optimizer, Combined)
    learn(built, optimizer)
    before = deepcopy(built.state_dict()), deepcopy(optimizer.state_dict()["state"])
    for parameter in built.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    torch.testing.assert_close(
        (built.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0
    )

    optimizer.found_inf = torch.tensor(0.0)
    learn(built, optimizer)
    learn(alike, usual)
    learn(alike, usual)
    torch.testing.assert_close(built.state_dict(), alike.state_dict())


def test_a_frozen_part_has_no_optimizer() -> None:
    for trained in ("weight", "bias"):
        linear = nn.Linear(3, 3)
        for name, parameter in linear.named_parameters():
            parameter.requires_grad_(name == trained)
        groups = make_optimizer(linear, SPEC).param_groups
        assert [len(group["params"]) for group in groups] == [1]


@pytest.mark.parametrize("combined", [True, False])
def test_a_closure_gives_the_loss_before_the_step(combined: bool) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    muon = Muon([weight], lr=0.5, weight_decay=0.0)
    optimizer = Combined([muon]) if combined else muon

    def closure() -> float:
        optimizer.zero_grad()
        loss = weight.sum()
        torch.autograd.backward(loss)
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert weight.sum().item() < 4.0


def test_a_matrix_without_a_gradient_stays_as_it_is() -> None:
    trained, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([trained, other], lr=0.5, weight_decay=0.1)
    trained.grad = torch.eye(2)
    optimizer.step()
    assert not torch.equal(trained, torch.ones(2, 2))
    assert torch.equal(other, torch.ones(2, 2))


@pytest.fixture
def packed() -> tuple[list[nn.Parameter], dict[nn.Parameter, tuple[int, ...]]]:
    """The matrices of six layers and their gradients; some are several, one above the other."""
    torch.manual_seed(0)
    parameters: list[nn.Parameter] = []
    rows: dict[nn.Parameter, tuple[int, ...]] = {}
    for _ in range(6):
        for *shape, parts in ((99, 33, 3), (33, 33, 1), (132, 33, 1), (33, 132, 1)):
            parameter = nn.Parameter(torch.randn(*shape))
            parameter.grad = torch.randn(*shape)
            parameters.append(parameter)
            if parts > 1:
                rows[parameter] = (shape[0] // parts,) * parts
    return parameters, rows


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """The bytes of each storage by its address."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def made_since() -> dict[int, int]:
    """The storages of tensors that Python knows since `gc.freeze()`, some of which are older."""
    return storages(found for found in gc.get_objects() if issubclass(type(found), torch.Tensor))


@pytest.fixture
def kept() -> Iterator[None]:
    """What is made lives until its last reference goes, and no tensor of another test's counts."""
    gc.collect()
    gc.disable()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.usefixtures("kept")
def test_a_step_takes_memory_for_the_updates_of_one_shape_at_a_time(
    packed: tuple[list[nn.Parameter], dict[nn.Parameter, tuple[int, ...]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parameters, rows = packed
    optimizer = Muon(parameters, lr=0.01, weight_decay=0.1, packed_rows=rows)
    optimizer.step()  # makes the means, which stay
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    means = [tensor for state in optimizer.state.values() for tensor in state.values()]
    known = storages([*parameters, *gradients, *means]).keys()
    gc.freeze()  # what was made since the fixture's, too
    taken: dict[torch.Size, int] = {}

    def look(updates_NRC: torch.Tensor) -> torch.Tensor:
        made = sum(bytes_ for address, bytes_ in made_since().items() if address not in known)
        taken[updates_NRC.shape] = made - updates_NRC.nbytes
        return orthogonalized(updates_NRC)

    monkeypatch.setattr(muon, "orthogonalized", look)
    optimizer.step()

    assert taken == dict.fromkeys([(24, 33, 33), (6, 132, 33), (6, 33, 132)], 0)


def test_the_steps_of_several_matrices_in_one_are_in_each_bit_those_of_their_definition(
    packed: tuple[list[nn.Parameter], dict[nn.Parameter, tuple[int, ...]]],
) -> None:
    parameters, rows = packed
    parts: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for parameter in parameters:
        assert parameter.grad is not None
        mean = torch.zeros_like(parameter).lerp(parameter.grad, 1 - MOMENTUM)
        update = parameter.grad.lerp(mean, MOMENTUM)
        each = rows.get(parameter, (len(parameter),))
        decayed = parameter.detach() * (1 - 0.01 * 0.1)
        for pair in zip(decayed.split_with_sizes(each), update.split_with_sizes(each), strict=True):
            parts.setdefault(pair[0].shape, []).append(pair)
    for (height, width), pairs in parts.items():
        updates = orthogonalized(torch.stack([update for _, update in pairs])).float()
        updates = updates * (0.01 * 0.2 * math.sqrt(max(height, width)))
        for (matrix, _), update in zip(pairs, updates, strict=True):
            matrix.sub_(update)
    expected = {shape: [matrix for matrix, _ in pairs] for shape, pairs in parts.items()}

    Muon(parameters, lr=0.01, weight_decay=0.1, packed_rows=rows).step()

    for parameter in parameters:
        each = rows.get(parameter, (len(parameter),))
        for matrix in parameter.detach().split_with_sizes(each):
            assert torch.equal(matrix, expected[matrix.shape].pop(0))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_step_asks_for_no_number_and_leaves_its_state_where_it_is(
    packed: tuple[list[nn.Parameter], dict[nn.Parameter, tuple[int, ...]]], device: str
) -> None:
    """As a step must that a GPU records and replays; a tensor of ``meta`` has no numbers."""
    parameters = []
    rows = {}
    for parameter in packed[0]:
        moved = nn.Parameter(parameter.detach().to(device))
        moved.grad = torch.zeros_like(moved)
        parameters.append(moved)
        if parameter in packed[1]:
            rows[moved] = packed[1][parameter]
    rate = torch.tensor(0.01, device=device)
    optimizer = Muon(parameters, lr=rate, weight_decay=0.1, packed_rows=rows)
    optimizer.found_inf = torch.tensor(0.0, device=device)

    def tensors() -> list[tuple[int, int]]:
        means = [optimizer.state[parameter]["momentum_buffer"] for parameter in parameters]
        return [(id(tensor), tensor.data_ptr()) for tensor in (*parameters, *means)]

    optimizer.step()
    before = tensors()
    optimizer.step()
    assert tensors() == before
