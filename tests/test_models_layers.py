import pytest
import torch
import torch.nn.functional as F

from groupvit.models import layers, noise
from groupvit.models.layers import Block, attend, resampled


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [5, 150])
def test_attention_is_that_of_pytorch(length: int, causal: bool, monkeypatch):
    monkeypatch.setattr(layers, "_AT_ONCE", 2 * length * length * 2)  # two images at once
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


def test_each_length_and_precision_has_its_kernel(monkeypatch):
    calls = []
    for module, name in ((layers, "_attend"), (F, "scaled_dot_product_attention")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, o=original, n=name, **b: calls.append(n) or o(*a, **b))

    def kernels(length: int, dtype: torch.dtype = torch.float32, batch: int = 1, **options: bool) -> list[str]:
        q, k, v = torch.randn(3, batch, 2, length, 32, dtype=dtype)
        calls.clear()
        attend(q, k, v, **options)
        return list(calls)

    fused = ["scaled_dot_product_attention"]
    assert kernels(100) == ["_attend"]  # gradients
    with torch.no_grad():
        assert kernels(100) == kernels(600) == kernels(600, batch=0) == fused
        assert kernels(100, causal=True) == kernels(100, torch.bfloat16) == ["_attend"]
        monkeypatch.setattr(layers, "_AT_ONCE", 2 * 2 * 100 * 100)
        assert kernels(100, torch.bfloat16, batch=3) == ["_attend", "_attend"]
        monkeypatch.setattr(layers, "_LONGEST", 10)
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


def test_positions_are_resampled_only_when_the_grid_differs():
    positions = torch.randn(1, 16, 32)
    assert resampled(positions, 4, 4) is positions
    torch.testing.assert_close(resampled(torch.ones(1, 16, 32), 7, 9), torch.ones(1, 63, 32))
