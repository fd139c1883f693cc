"""Cluster attention against its formula, on sequences and maps."""

import pytest
import torch

from clustr_mm.models import ClusterAttention, SelfAttention
from clustr_mm.ops import dpc_knn, merge_tokens


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def softmax_attention(q, kv, heads):
    """softmax(q k^T / sqrt(64)) v, head by head, with plain products."""
    k, v = kv.chunk(2, dim=-1)
    outs = []
    for qh, kh, vh in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v)), strict=True):
        outs.append((qh @ kh.transpose(1, 2) / qh.shape[-1] ** 0.5).softmax(-1) @ vh)
    return torch.cat(outs, dim=-1)


def by_the_formula(attn, x):
    logits = attn.token_weight(x).squeeze(-1)
    total = 0
    for m, kv in zip(attn.num_clusters(x.shape[1]), attn.kvs, strict=True):
        cluster_tokens = merge_tokens(x, dpc_knn(x, m, attn.k, 'reference'), m, logits)
        total = total + softmax_attention(attn.q(x), kv(cluster_tokens), attn.num_heads)
    return attn.proj(total)


@pytest.mark.parametrize('n', [1, 2, 5, 15, 16, 17, 100])
@pytest.mark.parametrize('scales', [(1,), (1, 4), (1, 2, 16)])
def test_is_the_formula(n, scales):
    attn = ClusterAttention(32, 2, reduction=4, scales=scales).double()
    x = tokens(3, n, 32)
    torch.testing.assert_close(attn(x), by_the_formula(attn, x), rtol=0, atol=1e-13)


def test_self_attention_is_the_formula():
    attn = SelfAttention(32, 4).double()
    x = tokens(2, 9, 32)
    torch.testing.assert_close(
        attn(x), attn.proj(softmax_attention(attn.q(x), attn.kv(x), 4)), rtol=0, atol=1e-13
    )


def test_cluster_counts():
    attn = ClusterAttention(8, 1, reduction=8)
    assert attn.num_clusters(3136) == (49, 196)
    assert attn.num_clusters(63) == (1, 4)
    assert attn.num_clusters(3) == (1, 3)
    assert ClusterAttention(8, 1, reduction=2).num_clusters(25) == (6, 24)


def test_every_parameter_gets_a_gradient():
    attn = ClusterAttention(32, 2, reduction=2).double()
    attn(tokens(2, 26, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in attn.parameters())


def test_clusters_can_be_shared():
    attn, other = (ClusterAttention(32, 2, reduction=4).double() for _ in range(2))
    x = tokens(2, 64, 32)
    clusters = attn.cluster(x)
    assert torch.equal(attn(x), attn(x, clusters=clusters))
    assert torch.equal(other(x), other(x, clusters=clusters)), 'the clustering has no parameters'


def test_one_window_is_the_whole_map():
    attn = ClusterAttention(32, 2, reduction=4).double()
    x = tokens(2, 80, 32)
    expected = attn(x)
    attn.cluster_window = 7  # round(8 / 7) = round(10 / 7) = 1
    assert torch.equal(attn(x, (8, 10)), expected)


def test_fine_scope_window_attends_within_the_window():
    height, width, window = 8, 12, 4
    attn = ClusterAttention(
        32, 2, reduction=2, cluster_window=window, fine_scope='window', scales=(1, 2)
    ).double()
    x = tokens(2, height * width, 32)
    clusters = attn.cluster(x, (height, width))
    # The same by a mask over all clusters.
    logits, q = attn.token_weight(x).squeeze(-1), attn.q(x)
    place = torch.arange(height * width)
    home = (place // width // window) * (width // window) + place % width // window
    total = 0
    for s, kv in enumerate(attn.kvs):
        count = clusters.num_clusters[s]
        k, v = kv(merge_tokens(x, clusters.labels[s], count, logits)).chunk(2, dim=-1)
        cluster_home = torch.arange(count) // (count // 6)
        foreign = (home[:, None] != cluster_home) & (s > 0)
        for h in range(2):
            part = slice(16 * h, 16 * h + 16)
            score = q[..., part] @ k[..., part].transpose(1, 2) / 4
            out = score.masked_fill(foreign, -torch.inf).softmax(-1) @ v[..., part]
            total = total + torch.nn.functional.pad(out, (part.start, 32 - part.stop))
    torch.testing.assert_close(attn(x, (height, width)), attn.proj(total), rtol=0, atol=1e-13)


@pytest.mark.parametrize('fine_scope', ['global', 'window'])
@pytest.mark.parametrize('hw', [(7, 13), (9, 9), (1, 30), (11, 6)])
def test_uneven_windows_run_and_train(hw, fine_scope):
    attn = ClusterAttention(32, 2, reduction=2, cluster_window=4, fine_scope=fine_scope).double()
    x = tokens(2, hw[0] * hw[1], 32).requires_grad_()
    out = attn(x, hw)
    out.square().sum().backward()
    assert out.shape == x.shape and x.grad.isfinite().all()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_heads=3), 'num_heads is 3; use a divisor of the 32 channels'),
        (dict(scales=(4, 1)), r'scales is \(4, 1\)'),
        (dict(scales=()), 'scales is'),
        (dict(reduction=0), 'reduction is 0'),
        (dict(k=0), 'k is 0'),
        (dict(cluster_window=0), 'cluster_window is 0'),
        (dict(fine_scope='local'), "fine_scope is 'local'"),
        (dict(fine_scope='window'), 'set cluster_window'),
    ],
)
def test_what_cannot_be_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClusterAttention(**{'dim': 32, 'num_heads': 2, **arguments})


def test_windows_need_a_map():
    with pytest.raises(ValueError, match='pass hw'):
        ClusterAttention(32, 2, cluster_window=4)(torch.zeros(1, 64, 32))


def ragged(lengths, n=40, dim=32):
    """Tokens with padding that would be seen, and their mask."""
    x = tokens(len(lengths), n, dim)
    mask = torch.arange(n) < torch.tensor(lengths)[:, None]
    return x.masked_fill(~mask[..., None], torch.inf), mask


LENGTHS = [40, 1, 17, 4, 17, 31, 0]


@pytest.mark.parametrize('scales', [(1,), (1, 4), (1, 2, 16)])
def test_a_padded_sequence_is_as_if_alone(scales):
    attn = ClusterAttention(32, 2, reduction=2, scales=scales).double()
    x, mask = ragged(LENGTHS)
    out = attn(x, mask=mask)
    for row, length in enumerate(LENGTHS):
        assert not out[row, length:].any(), 'padding comes out as 0'
        if length:
            alone = attn(x[row : row + 1, :length])[0]
            torch.testing.assert_close(out[row, :length], alone, rtol=0, atol=1e-13)


@torch.no_grad()
def test_padded_labels_are_those_of_the_sequence_alone():
    attn = ClusterAttention(16, 2, reduction=2)
    x, mask = ragged(LENGTHS, dim=16)
    x = x.float()
    clusters = attn.cluster(x, mask=mask)
    assert clusters.num_clusters == (10, 40)
    for row, length in enumerate(LENGTHS):
        for scale, own in enumerate(attn.num_clusters(max(1, length))):
            label = clusters.labels[scale][row]
            assert torch.all(label[length:] == clusters.num_clusters[scale])
            present = clusters.padding.present[scale][row]
            assert present.nonzero().flatten().tolist() == list(range(own))
            if length:
                assert torch.equal(label[:length], dpc_knn(x[row : row + 1, :length], own, 5)[0])


def test_padding_may_stand_anywhere():
    attn = ClusterAttention(32, 2, reduction=2).double()
    x = tokens(1, 20, 32)
    mask = torch.rand(3, 50, generator=torch.Generator().manual_seed(0)).argsort(1) < 20
    padded = torch.full((3, 50, 32), torch.nan, dtype=torch.float64)
    padded[mask] = x.expand(3, -1, -1).reshape(-1, 32)
    out = attn(padded, mask=mask)
    torch.testing.assert_close(
        out[mask].view(3, 20, 32), attn(x).expand(3, -1, -1), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize('cls', [ClusterAttention, SelfAttention])
def test_gradients_know_no_padding(cls):
    attn = cls(32, 2).double()
    x, mask = ragged(LENGTHS)
    x.requires_grad_()
    attn(x, mask=mask).square().sum().backward()
    assert not x.grad[~mask].any() and x.grad[mask].abs().min() > 0
    padded = [p.grad.clone() for p in attn.parameters()]
    attn.zero_grad()
    for row, length in enumerate(LENGTHS):
        if length:
            attn(x.detach()[row : row + 1, :length]).square().sum().backward()
    for grad, parameter in zip(padded, attn.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-9, atol=1e-13)


def test_dense_attention_sees_no_padding():
    attn = SelfAttention(32, 4).double()
    x, mask = ragged(LENGTHS)
    out = attn(x, mask)
    for row, length in enumerate(LENGTHS):
        assert not out[row, length:].any()
        alone = attn(x[row : row + 1, :length])[0]
        torch.testing.assert_close(out[row, :length], alone, rtol=0, atol=1e-13)


def test_a_mask_of_ones_changes_nothing():
    attn = ClusterAttention(32, 2, reduction=2).double()
    x = tokens(2, 26, 32)
    mask = torch.ones(2, 26, dtype=torch.bool)
    torch.testing.assert_close(attn(x, mask=mask), attn(x), rtol=0, atol=1e-13)
    clusters = attn.cluster(x, mask=mask)
    assert torch.equal(attn(x, clusters=clusters), attn(x, mask=mask))


def test_masks_that_do_not_fit_are_refused_by_name():
    x, mask = ragged(LENGTHS)
    attn = ClusterAttention(32, 2).double()
    with pytest.raises(ValueError, match=r'mask has shape \(7, 39\) .* need \(7, 40\), torch.bool'):
        attn(x, mask=mask[:, 1:])
    with pytest.raises(ValueError, match='dtype torch.int64'):
        attn(x, mask=mask.long())
    with pytest.raises(ValueError, match='clusters or mask, not both'):
        attn(x, clusters=attn.cluster(x, mask=mask), mask=mask)
    windowed = ClusterAttention(32, 2, cluster_window=4).double()
    with pytest.raises(ValueError, match='use cluster_window=None'):
        windowed(x, (5, 8), mask=mask)


def test_a_map_of_another_size_is_refused():
    attn = ClusterAttention(32, 2, reduction=2, cluster_window=2)
    with pytest.raises(ValueError, match=r'hw is \(5, 5\), a map of 25 tokens, and x has 24'):
        attn(torch.zeros(1, 24, 32), (5, 5))
