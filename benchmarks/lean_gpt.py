"""A GPT-2 as one writes it by hand in plain PyTorch, for the benchmarks' peers.

Fused attention, a packed projection, a tied head, a vocabulary padded to a multiple of 64, and
nothing else that is clever. B sequences, T tokens, D width, H heads, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LeanBlock(nn.Module):
    """Attention and feed-forward layer, each before a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BHTC, k_BHTC, v_BHTC = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.ln_1(x_BTD)).chunk(3, dim=-1)
        )
        y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, is_causal=True)
        x_BTD = x_BTD + self.out(y_BHTC.transpose(1, 2).flatten(2))
        y_BTD: Tensor = self.down(F.gelu(self.up(self.ln_2(x_BTD))))
        return x_BTD + y_BTD


class LeanGPT(nn.Module):
    """From token ids (B, T) and targets (B, T) to the mean loss."""

    def __init__(
        self, *, vocab_size: int, seq_len: int, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size + -vocab_size % 64, width)
        self.positions = nn.Embedding(seq_len, width)
        self.blocks = nn.ModuleList(LeanBlock(width, heads) for _ in range(layers))
        self.ln = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        x_BTD = self.tokens(ids_BT) + self.positions(places_T)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV = F.linear(self.ln(x_BTD), self.tokens.weight)
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
