import pytest
import torch
import torch.nn.functional as F
from torch import nn

from groupvit.models import layers
from groupvit.models.layers import Linear, Mlp, attend


def results(layer: nn.Linear, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    out = layer(x)
    return [
        out,
        *torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), [x, *layer.parameters()]),
    ]


@pytest.mark.parametrize("shape", [(300, 96), (3, 170, 96), (2, 96, 300)])
def test_products_by_onednn_are_those_of_pytorch(shape):
    x = torch.randn(shape)
    x = x if shape[-1] == 96 else x.transpose(1, 2)
    layer = Linear(96, 80)
    plain = nn.Linear(96, 80)
    plain.load_state_dict(layer.state_dict())
    for ours, expected in zip(results(layer, x), results(plain, x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), plain(x))


@pytest.fixture
def products(monkeypatch) -> list[tuple]:
    """The calls of oneDNN."""
    calls, original = [], layers._product
    monkeypatch.setattr(layers, "_product", lambda *given: calls.append(given) or original(*given))
    return calls


def test_only_large_float32_inputs_go_to_onednn(products):
    layer, x = Linear(64, 128), torch.randn(200, 64)
    layer(x[:20])
    layer.double()(x.double())
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert not products
    layer(x)
    assert len(products) == layers._ONEDNN


@pytest.mark.skipif(not layers._ONEDNN, reason="no oneDNN")
def test_no_gradient_is_computed_that_nobody_asked_for(products):
    layer, x = Linear(64, 128), torch.randn(200, 64)
    layer(x).sum().backward()
    assert len(products) == 2  # the output, the gradient of the weights
    layer.requires_grad_(False)
    layer(x.requires_grad_()).sum().backward()
    assert len(products) == 4  # the output, the gradient of the input


@pytest.mark.parametrize("quick", [False, True])
def test_a_perceptron_has_the_same_numbers_with_and_without_gradients(quick: bool, products):
    mlp, x = Mlp(64, 128, quick=quick), torch.randn(2, 150, 64)
    expected = mlp(x)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), expected)
    assert len(products) == 4 * layers._ONEDNN


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [5, 150])
def test_attention_is_that_of_pytorch(length: int, causal: bool, monkeypatch):
    monkeypatch.setattr(layers, "_LOGITS", 2 * length * length * 2)  # two images at once
    q, k, v = (torch.randn(3, length, 2, 32).transpose(1, 2).requires_grad_() for _ in range(3))
    expected = attended(q, k, v, causal)
    ours = attend(q, k, v, causal=causal)
    torch.testing.assert_close(ours, expected)
    wanted = torch.randn_like(expected)
    for own, other in zip(
        torch.autograd.grad(ours, (q, k, v), wanted), torch.autograd.grad(expected, (q, k, v), wanted), strict=True
    ):
        torch.testing.assert_close(own, other)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, causal=causal), expected)
        low = [x.bfloat16() for x in (q, k, v)]
        torch.testing.assert_close(attend(*low, causal=causal).float(), expected, rtol=0.05, atol=0.05)
        monkeypatch.setattr(layers, "_LONG", 10)
        torch.testing.assert_close(attend(q, k, v, causal=causal), expected)


def test_queries_may_be_fewer_than_keys():
    q, k, v = torch.randn(2, 2, 40, 64), torch.randn(2, 2, 300, 64), torch.randn(2, 2, 300, 64)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v), attended(q, k, v))


def test_a_layer_may_have_no_bias():
    layer, x = Linear(8, 6, bias=False), torch.randn(200, 8, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(dim=0).expand(200, 8))
