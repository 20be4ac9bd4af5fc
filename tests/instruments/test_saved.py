"""The meter of saved activations, against layers whose needs are known."""

from __future__ import annotations

import torch
from torch import nn

from luthier.instruments.saved import saved


def test_each_storage_counts_once_and_weights_do_not() -> None:
    layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    x = torch.randn(4, 8)
    with saved(layers.parameters()) as meter:
        sum(layer(x).sum() for layer in layers).backward()
    assert meter.bytes == x.numel() * 4  # three layers, one input


def test_casts_count_and_frozen_layers_save_nothing() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    frozen = nn.Linear(8, 8).requires_grad_(False)
    with saved(frozen.parameters()) as meter:
        frozen(x).sum()
    assert meter.bytes == 0
    trained = nn.Linear(8, 8).bfloat16()
    with saved(trained.parameters()) as meter:
        trained(x.bfloat16()).sum()
    assert meter.bytes == x.numel() * 2


def test_a_view_counts_with_the_whole_of_its_storage() -> None:
    x = torch.randn(100, 8)
    w = torch.randn(8, requires_grad=True)
    with saved([w]) as meter:
        (x[:2] * w).sum()
    assert meter.bytes == x.numel() * 4
