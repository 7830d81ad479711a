"""The concept bottleneck: a name is a linear function of the attributes' probabilities, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cytolens.models import catalog
from cytolens.models.classifier import Classifier
from cytolens.models.concepts import ConceptHead

pytestmark = pytest.mark.torch

VALUES = (2, 3)


def head(**options: bool) -> ConceptHead:
    torch.manual_seed(0)
    made = ConceptHead(VALUES, 4, **options)
    torch.nn.init.normal_(made.linear.weight)
    torch.nn.init.normal_(made.linear.bias)
    return made


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_name_is_the_weighted_sum_of_the_probabilities(exclusive: bool) -> None:
    layer = head(exclusive=exclusive)
    logits = torch.randn(6, 5)
    with torch.no_grad():
        names, concepts = layer(logits)
    weight, bias = layer.weight.detach().numpy(), layer.linear.bias.detach().numpy()
    for row in range(6):  # slow and obvious
        x = logits[row].double().numpy()
        if exclusive:
            shares = np.r_[np.exp(x[:2]) / np.exp(x[:2]).sum(), np.exp(x[2:]) / np.exp(x[2:]).sum()]
        else:
            shares = 1 / (1 + np.exp(-x))
        assert concepts[row].numpy() == pytest.approx(shares, abs=1e-6)
        for name in range(4):
            total = bias[name] + sum(weight[name, j] * shares[j] for j in range(5))
            assert float(names[row, name]) == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("detached", [True, False])
def test_what_names_teach_reaches_the_attributes_or_not(detached: bool) -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    layer = head(detached=detached)
    names, concepts = layer(logits)
    names.square().sum().backward(retain_graph=True)
    assert (logits.grad is not None and bool(logits.grad.abs().sum() > 0)) is not detached
    assert layer.linear.weight.grad is not None
    concepts.square().sum().backward()
    assert logits.grad is not None


def test_cells_with_the_same_attributes_have_the_same_name() -> None:
    torch.manual_seed(0)
    network = catalog.classifier(
        "test_efficientnet", classes=4, side_px=32, norm="batch", dropout=0.0, drop_path=0.0, attributes=VALUES,
        concepts="joint",
    ).eval()  # fmt: skip
    assert isinstance(network, Classifier)
    assert isinstance(network.head, ConceptHead)
    assert network.attributes is not None
    torch.nn.init.zeros_(network.attributes.linear.weight)  # all cells look alike, whatever they show
    names, embedding, _, concepts = network(torch.rand(2, 3, 32, 32) * 255)
    assert not torch.allclose(embedding[0], embedding[1])
    assert torch.allclose(concepts[0], concepts[1], atol=1e-6)
    assert torch.allclose(names[0], names[1], atol=1e-5)
