"""Packed copies of matrices that training does not change: the same numbers, names and files, and never stale."""

from __future__ import annotations

import copy

import pytest
from model_doubles import needs_model

needs_model()

import torch  # noqa: E402
from torch import nn  # noqa: E402

from instructvla_ros.model import frozen as room  # noqa: E402
from instructvla_ros.model.bench import random_model, with_stage  # noqa: E402
from instructvla_ros.model.config import preset  # noqa: E402
from instructvla_ros.model.frozen import Frozen, FrozenLinear, frozen_matrices, pack_frozen  # noqa: E402
from instructvla_ros.model.lora import LoraLinear  # noqa: E402
from instructvla_ros.model.packed import can_pack  # noqa: E402
from instructvla_ros.model.trainable import set_trainable  # noqa: E402
from instructvla_ros.training.bench import make_batch  # noqa: E402

if not can_pack(torch.float32):
    pytest.skip('torch does not multiply packed matrices here', allow_module_level=True)


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """Pack small matrices too, on any CPU."""
    monkeypatch.setattr(room, 'SMALLEST', 1)
    monkeypatch.setattr(room, '_packs', can_pack)


def small():
    layer = nn.Linear(48, 32)
    return layer.requires_grad_(False)


def test_product_and_derivative_are_those_of_the_layer():
    layer, found = small(), []
    for way in (layer, FrozenLinear(layer)):
        x = torch.linspace(-1, 1, 3 * 5 * 48).reshape(3, 5, 48).requires_grad_()
        y = way(x)
        (y * torch.arange(32.0)).sum().backward()
        found.append((y.detach(), x.grad))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert list(FrozenLinear(layer).state_dict()) == list(layer.state_dict())


def test_under_autocast_it_multiplies_in_its_format():
    if not can_pack(torch.bfloat16):
        pytest.skip('no bfloat16 products here')
    layer = small()
    x = torch.randn(7, 48, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        a, b = layer(x), FrozenLinear(layer)(x)
    assert a.dtype == b.dtype == torch.bfloat16
    torch.testing.assert_close(a, b)
    b.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


def test_a_matrix_that_changes_is_packed_anew_and_a_copy_has_its_own():
    layer = FrozenLinear(small())
    x = torch.randn(2, 48)
    layer(x)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.zero_()
    torch.testing.assert_close(layer(x), layer.bias.expand(2, -1))
    assert twin.frozen._weight is twin.weight and not torch.equal(twin(x), layer(x))


@pytest.mark.parametrize(('recipe', 'stage'), [('stage1', 1), ('stage2', 2), ('onsite', 2)])
def test_a_training_step_is_the_same(recipe, stage):
    config = with_stage(preset('tiny'), stage)
    data = make_batch(config, 2, torch.device('cpu'))
    found = []
    for packing in (False, True):
        model = random_model(config, torch.device('cpu'), torch.float32).eval()
        set_trainable(model, recipe)
        names = list(model.state_dict())
        if packing:
            assert pack_frozen(model) > 20
            assert any(isinstance(m, LoraLinear) and m.frozen is not None for m in model.modules())
            assert list(model.state_dict()) == names
        before = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
        loss = model(data).total
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        assert all(torch.equal(before[n], p) for n, p in model.named_parameters() if n in before)
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        assert (found[1][1][name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6, name


def test_what_is_trained_is_left_alone_and_so_is_a_model_too_large(monkeypatch):
    model = random_model(preset('tiny'), torch.device('cpu'), torch.float32)
    set_trainable(model, 'scratch')
    assert frozen_matrices(model) == []
    set_trainable(model, 'stage1')
    assert frozen_matrices(model)
    monkeypatch.setattr(room, 'MOST', 1000)
    assert pack_frozen(model) == 0


def test_where_nothing_was_found_to_pay_nothing_is_packed(monkeypatch):
    monkeypatch.setattr(room, '_packs', lambda dtype: False)
    layer, x = small(), torch.randn(2, 48)
    assert torch.equal(Frozen(layer.weight).multiply(x, layer.bias), layer(x))
    model = random_model(preset('tiny'), torch.device('cpu'), torch.float32)
    set_trainable(model, 'stage1')
    assert pack_frozen(model) == 0
