"""The attentions that the paper's is held against are what their names say."""

import pytest
import torch

from clustr_mm.models import ClusterAttention, Clusters, SelfAttention

pytest.importorskip('mmengine')
from clustr_mm.analysis.variants import (
    BlindBackbone,
    ClusTRVariant,
    MeanAttention,
    SizedClusterAttention,
)
from clustr_mm.integrations.openmmlab import ClusTR

ARCH = dict(
    embed_dims=(16, 32), depths=(2, 1), num_heads=(2, 2), mlp_ratios=(2, 2), reductions=(4, 1)
)


def test_attention_by_size_is_attention_to_every_token_of_a_cluster():
    """With the same key at all tokens of a cluster, size in the logits is dense attention."""
    torch.manual_seed(0)
    sized = SizedClusterAttention(8, 2, reduction=2, scales=(1,)).double()
    torch.nn.init.zeros_(sized.token_weight.weight)
    torch.nn.init.zeros_(sized.token_weight.bias)
    labels = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 3]])  # and an empty cluster
    x = torch.randn(1, 4, 8).double()[:, labels[0]]
    out = sized(x, clusters=Clusters((labels,), (4,)))
    dense = sized(x, clusters=Clusters((None,), (8,)))
    # The mean of a cluster's equal tokens is the token, but for the 1e-6 in the sum of weights.
    torch.testing.assert_close(out, dense, rtol=0, atol=1e-5)
    plain = ClusterAttention.forward(sized, x, clusters=Clusters((labels,), (4,)))
    assert (plain - dense).abs().max() > 1e-3


def test_attention_by_size_refuses_what_it_does_not_do():
    with pytest.raises(ValueError, match='neither padding nor fine_scope'):
        SizedClusterAttention(8, 2)(torch.randn(1, 9, 8), mask=torch.ones(1, 9).bool())


def test_mean_attention_is_uniform():
    attention = MeanAttention(8, 2)
    x = torch.randn(2, 9, 8)
    out = attention(x)
    assert torch.equal(out, out[:, :1].expand_as(out))
    torch.testing.assert_close(out[:, 0], attention.proj(attention.kv(x).mean(1)))


def test_mean_but_last_leaves_the_dense_stage():
    model = ClusTRVariant(arch=ARCH, attention='mean_but_last', out_indices=(1,))
    assert isinstance(model.stages[0].blocks[1].attn, MeanAttention)
    assert type(model.stages[1].blocks[0].attn) is SelfAttention


@pytest.mark.parametrize(
    'attention',
    ['clusters', 'sized', 'mean', 'mean_but_last', 'balanced', 'dense', 'grid', 'kmeans', 'random'],
)
def test_every_variant_learns(attention):
    torch.manual_seed(0)
    model = ClusTRVariant(arch=ARCH, attention=attention, out_indices=(0, 1), drop_path_rate=0.0)
    maps = model(torch.randn(2, 3, 40, 56))
    assert [each.shape for each in maps] == [(2, 16, 10, 14), (2, 32, 5, 7)]
    sum(each.square().mean() for each in maps).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_papers_attention_is_the_papers():
    pictures = torch.randn(1, 3, 40, 56)
    maps = []
    for kind in (ClusTRVariant, ClusTR):
        torch.manual_seed(0)
        maps.append(kind(arch=ARCH, out_indices=(0, 1)).eval()(pictures))
    assert all(torch.equal(own, other) for own, other in zip(*maps, strict=True))


def test_unknown_attention_and_windows_of_a_grouping_are_refused():
    with pytest.raises(ValueError, match="attention is 'dens'; use one of clusters, sized"):
        ClusTRVariant(arch=ARCH, out_indices=(0, 1), attention='dens')
    with pytest.raises(ValueError, match='cluster_window 7; leave one out'):
        ClusTRVariant(arch=ARCH, out_indices=(0, 1), attention='grid', cluster_window=7)


def test_a_blind_backbone_does_not_see():
    blind = BlindBackbone((40, 56), channels=(4, 8), strides=(4, 8))
    first, second = blind(torch.randn(2, 3, 40, 56)), blind(torch.zeros(2, 3, 40, 56))
    assert [each.shape for each in first] == [(2, 4, 10, 14), (2, 8, 5, 7)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert [each.shape for each in blind(torch.zeros(1, 3, 80, 80))] == [
        (1, 4, 20, 20),
        (1, 8, 10, 10),
    ]
