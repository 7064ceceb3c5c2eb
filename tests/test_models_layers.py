import pytest
import torch
import torch.nn.functional as F
from torch import nn

from groupvit.models import layers, noise
from groupvit.models.layers import Block, Linear, attend, linear


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


def test_the_second_derivative_is_that_of_pytorch():
    def penalty(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), layer.weight)[0]

    layer, plain, x = Linear(64, 128), nn.Linear(64, 128), torch.randn(200, 64, requires_grad=True)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(penalty(layer, x), penalty(plain, x), rtol=1e-4, atol=1e-3)


def test_inputs_of_any_stride_and_shape():
    weight, x = torch.randn(2000, 1500).T, torch.randn(1500, 2000)
    for bias in (torch.randn(1500, 2)[:, 1], torch.randn(1).expand(1500), None):
        torch.testing.assert_close(linear(x[::2], weight, bias), F.linear(x[::2], weight, bias), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(linear(x[0], weight), F.linear(x[0], weight), rtol=1e-4, atol=1e-3)
    assert linear(x[:0], weight).shape == (0, 1500)


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
        torch.testing.assert_close(attend(*low, causal=causal).float(), expected, rtol=0.02, atol=0.02)


def test_each_length_and_precision_has_its_kernel(monkeypatch, products):
    calls = []
    for module, name in ((layers, "_attend"), (F, "scaled_dot_product_attention")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, o=original, n=name, **b: calls.append(n) or o(*a, **b))

    def kernels(length: int, dtype: torch.dtype = torch.float32, batch: int = 1, **options: bool) -> list[str]:
        q, k, v = torch.randn(3, batch, 2, length, 32, dtype=dtype)
        calls.clear()
        products.clear()
        attend(q, k, v, **options)
        return [*calls, "oneDNN"] if products else list(calls)

    fused = ["scaled_dot_product_attention"]
    assert kernels(100) == ["_attend"]  # gradients
    with torch.no_grad():
        assert kernels(100) == kernels(600, batch=0) == fused
        assert kernels(100, causal=True) == kernels(100, torch.bfloat16) == ["_attend"]
        assert kernels(600) == (["oneDNN"] if layers._ONEDNN else fused)
        monkeypatch.setattr(layers, "_LOGITS", 2 * 2 * 100 * 100)
        assert kernels(100, torch.bfloat16, batch=3) == ["_attend", "_attend"]
        monkeypatch.setattr(layers, "_LONG", 10)
        assert kernels(100, torch.bfloat16) == fused


@pytest.mark.parametrize("queries", [40, 520])
def test_attention_of_many_keys_without_gradients(queries: int):
    q, (k, v) = torch.randn(2, 2, queries, 64), torch.randn(2, 2, 2, 520, 64)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v), attended(q, k, v))


def test_stochastic_depth_drops_branches_apart_and_keeps_their_mean():
    block = Block(8, 2, drop_path=0.3)
    kept = block.kept(noise.sample_keys(0, 0, torch.arange(20_000)))
    assert kept is not None
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.7])
    dropped = (kept == 0).flatten(1).float()
    assert dropped.mean(dim=1).tolist() == pytest.approx([0.3, 0.3], abs=0.02)
    assert torch.corrcoef(dropped)[0, 1].abs() < 0.03
    x = torch.randn(3, 5, 8)
    one_branch = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])[..., None, None]
    after = block(x, one_branch)
    torch.testing.assert_close(after[0], (x + block.attn(block.norm1(x)))[0])
    torch.testing.assert_close(after[1], (x + block.mlp(block.norm2(x)))[1])
    assert torch.equal(after[2], x[2])


def test_a_pytorch_without_this_door_is_noticed(monkeypatch):
    assert layers._has_onednn() == layers._ONEDNN
    monkeypatch.setattr(layers, "_product", lambda *given: torch.ops.mkldnn.no_such_door)
    assert not layers._has_onednn()


def test_a_layer_may_have_no_bias(products):
    layer, x = Linear(64, 128, bias=False), torch.randn(200, 64, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(dim=0).expand(200, 64))
    assert len(products) == 3 * layers._ONEDNN
