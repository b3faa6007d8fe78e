"""Training as a textbook has it, in float32: what the engine's fast paths are measured by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from trainer_app.core.batches import Batches
from trainer_app.core.data import prepare_data
from trainer_app.core.model import initial_model
from trainer_app.core.muon import hidden_matrices
from trainer_app.core.stopping import never

if TYPE_CHECKING:
    from backends.contracts import CausalModel
    from tests.training_bench import Bench
    from trainer_app.core.spec import TrainSpec

BETAS = (0.9, 0.95)


def plain_losses(bench: Bench, spec: TrainSpec) -> list[float]:
    """The losses of all steps of a run: the same model and batches, and nothing else of ours.

    The learning rate is to be constant, without warm-up.
    """
    assert spec.lr_scheduler_type == "constant"
    assert spec.warmup_ratio == 0.0
    data = prepare_data(
        spec,
        corpus=bench.corpus,
        tokenizer_directory=None if spec.model_family == "char_lstm" else bench.tokenizer,
        scratch=bench.folder / "plain",
        tokens=bench.folder / "tokens",
        on_message=lambda _: None,
        should_stop=never,
    )
    batches = Batches(
        data.streams.train.ids,
        seq_len=spec.max_seq_len,
        batch_size=spec.batch_size,
        accumulation=spec.gradient_accumulation_steps,
        seed=spec.seed,
    )
    model = initial_model(spec, data, None).to(spec.device).train()
    optimizers = _optimizers(model, spec)
    losses = []
    for step in range(spec.max_steps):
        total = 0.0
        for micro in range(batches.accumulation):
            inputs_BT, targets_BT = (part.to(spec.device) for part in batches.at(step, micro))
            logits_BTV = model(inputs_BT)
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
            torch.autograd.backward(loss / batches.accumulation)
            total += loss.item() / batches.accumulation
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.gradient_clipping)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        losses.append(total)
    return losses


def _optimizers(model: CausalModel, spec: TrainSpec) -> list[torch.optim.Optimizer]:
    """torch's own."""
    by_muon = hidden_matrices(model) if spec.optimizer == "muon" else []
    ours = {id(parameter) for parameter in by_muon}
    others = [parameter for parameter in model.parameters() if id(parameter) not in ours]
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=spec.learning_rate, betas=BETAS, foreach=False)
    ]
    if by_muon:
        found.append(torch_muon(model, lr=spec.learning_rate, weight_decay=spec.weight_decay))
    return found


def torch_muon(model: CausalModel, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """torch's own for each of the matrices that the model's weights are made of."""
    packed = model.packed_rows()
    parts_of: dict[nn.Parameter, list[nn.Parameter]] = {}  # in the weights' own memory
    for weight in hidden_matrices(model):
        rows = packed.get(weight, (len(weight),))
        parts_of[weight] = [nn.Parameter(part) for part in weight.detach().split_with_sizes(rows)]

    def give_gradients(*_: object) -> None:
        for weight, parts in parts_of.items():
            assert weight.grad is not None
            grads = weight.grad.split_with_sizes([len(part) for part in parts])
            for part, grad in zip(parts, grads, strict=True):
                part.grad = grad

    optimizer: torch.optim.Optimizer = torch.optim.Muon(
        [part for parts in parts_of.values() for part in parts],
        lr=lr,
        weight_decay=weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    optimizer.register_step_pre_hook(give_gradients)
    return optimizer
