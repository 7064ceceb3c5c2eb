import pytest
import torch
from torch import nn

from groupvit.models import layers
from groupvit.models.layers import Linear


def results(layer: nn.Linear, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    out = layer(x)
    return [
        out,
        *torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), [x, *layer.parameters()]),
    ]


@pytest.mark.parametrize("shape", [(300, 24), (3, 70, 24), (2, 24, 100)])
def test_products_by_onednn_are_those_of_pytorch(shape):
    x = torch.randn(shape)
    x = x if shape[-1] == 24 else x.transpose(1, 2)
    layer = Linear(24, 40)
    plain = nn.Linear(24, 40)
    plain.load_state_dict(layer.state_dict())
    for ours, expected in zip(results(layer, x), results(plain, x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), plain(x))


def test_only_large_float32_inputs_go_to_onednn(monkeypatch):
    layer, calls = Linear(8, 8), []
    monkeypatch.setattr("groupvit.models.layers._product", lambda *given: calls.append(given) or torch.zeros(200, 8))
    layer(torch.randn(20, 8))
    layer.double()(torch.randn(200, 8, dtype=torch.float64))
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(200, 8)).dtype == torch.bfloat16
    assert not calls
    layer(torch.randn(200, 8))
    assert len(calls) == layers._ONEDNN


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
def test_no_gradient_is_computed_that_nobody_asked_for(monkeypatch):
    products, original = [], layers._product
    monkeypatch.setattr(layers, "_product", lambda *given: products.append(1) or original(*given))
    layer = Linear(8, 8)
    layer(torch.randn(200, 8)).sum().backward()
    assert len(products) == 2  # the output, the gradient of the weights
    layer.requires_grad_(False)
    layer(torch.randn(200, 8, requires_grad=True)).sum().backward()
    assert len(products) == 4  # the output, the gradient of the input


def test_a_layer_may_have_no_bias():
    layer, x = Linear(8, 6, bias=False), torch.randn(200, 8, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(dim=0).expand(200, 8))
