"""The groupings that density peaks are compared with are what their names say."""

import pytest
import torch

from clustr_mm.analysis.groupings import GROUPINGS, RegroupedAttention
from clustr_mm.models import ClusterAttention

HW = (12, 18)
TOKENS = HW[0] * HW[1]


@pytest.fixture(scope='module')
def x():
    return torch.randn(2, TOKENS, 16, generator=torch.Generator().manual_seed(0))


def test_dense_attention_is_softmax_over_all_tokens(x):
    attention = ClusterAttention(16, 2, reduction=4).double()
    x = x.double()
    out = RegroupedAttention(attention, 'dense')
    clusters = out.cluster(x, HW)
    assert clusters.num_clusters == (TOKENS, TOKENS)

    weight = attention.token_weight(x).exp()  # (B, N, 1)
    tokens = x * weight / (weight + 1e-6)
    expected = 0
    for kv in attention.kvs:
        k, v = kv(tokens).chunk(2, dim=-1)
        parts = []
        for head in (slice(0, 8), slice(8, 16)):
            logits = attention.q(x)[..., head] @ k[..., head].mT / 8**0.5
            parts.append(logits.softmax(-1) @ v[..., head])
        expected = expected + torch.cat(parts, dim=-1)
    torch.testing.assert_close(out(x, HW, clusters), attention.proj(expected))


def test_random_centres_take_the_tokens_nearest_to_them(x):
    clusters = GROUPINGS['random'](x, (13, 52), HW)
    assert clusters.num_clusters == (13, 52)
    centres = None
    for labels, count in zip(clusters.labels, clusters.num_clusters, strict=True):
        # A centre is at distance 0 from itself, so it is found from the labels alone.
        places = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(TOKENS))[:count]
        assert torch.equal(labels[:, places], torch.arange(count).expand(2, -1))
        nearest = torch.cdist(x, x[:, places]).argmin(-1)
        assert torch.equal(labels, nearest)
        assert centres is None or torch.equal(places[: len(centres)], centres)
        centres = places


def test_every_random_centre_keeps_itself_among_equal_tokens():
    (labels,) = GROUPINGS['random'](torch.ones(1, TOKENS, 16), (13,), HW).labels
    assert labels.unique().tolist() == list(range(13))


def test_random_centres_do_not_depend_on_the_tiles(x, monkeypatch):
    whole = GROUPINGS['random'](x, (13,), HW).labels[0]
    monkeypatch.setattr('clustr_mm.analysis.groupings._TILE', 2 * 13 * 5)
    assert torch.equal(GROUPINGS['random'](x, (13,), HW).labels[0], whole)


def test_grid_cells_are_rectangles_of_nearly_one_size(x):
    clusters = GROUPINGS['grid'](x, (13, 54), HW)
    assert clusters.num_clusters == (3 * 4, 6 * 9)
    for labels, count in zip(clusters.labels, clusters.num_clusters, strict=True):
        sizes = labels[0].bincount(minlength=count)
        assert sizes.min() > 0 and sizes.max() <= 1.5 * sizes.min()
        for cell in range(count):
            rows, columns = (labels[0].view(HW) == cell).nonzero().unbind(1)
            area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            assert area == len(rows)


def spread(x, labels, count):
    """Mean squared distance of the tokens from the mean of their cluster."""
    total = 0
    for tokens, label in zip(x, labels, strict=True):
        for cluster in range(count):
            own = tokens[label == cluster]
            total += (own - own.mean(0)).square().sum() if len(own) else 0
    return total / x.shape[0] / x.shape[1]


def test_kmeans_is_tighter_than_its_random_start(x):
    for count in (13, 52):
        (found,), (start,) = (GROUPINGS[g](x, (count,), HW).labels for g in ('kmeans', 'random'))
        assert spread(x, found, count) < 0.97 * spread(x, start, count)


def test_kmeans_finds_groups_that_lie_apart(monkeypatch):
    torch.manual_seed(0)
    group = torch.randint(3, (1, TOKENS))
    x = 100 * torch.eye(16)[group] + torch.randn(1, TOKENS, 16)
    # One centre of each group, so that the end is known.
    places = torch.stack([(group[0] == g).nonzero()[0, 0] for g in range(3)])
    monkeypatch.setattr('clustr_mm.analysis.groupings._random_places', lambda x: places)
    (labels,) = GROUPINGS['kmeans'](x, (3,), HW).labels
    assert torch.equal(labels, group)


def test_kmeans_keeps_the_centre_of_an_empty_cluster():
    (labels,) = GROUPINGS['kmeans'](torch.ones(1, TOKENS, 16), (13,), HW).labels
    assert labels.unique().tolist() == [0]


def test_balanced_clusters_are_of_one_size_and_in_order_of_likeness(x):
    clusters = GROUPINGS['balanced'](x, (13, 52), HW)
    alike = torch.nn.functional.cosine_similarity(x, x.mean(1, keepdim=True), dim=-1)
    for labels, count in zip(clusters.labels, clusters.num_clusters, strict=True):
        for label, likeness in zip(labels, alike, strict=True):
            sizes = label.bincount(minlength=count)
            assert sizes.max() - sizes.min() <= 1
            sequence = label[likeness.argsort(descending=True)]
            assert torch.equal(sequence, sequence.sort().values)


@pytest.mark.parametrize('grouping', ['balanced', 'grid', 'kmeans', 'random'])
def test_as_many_clusters_as_tokens_need_no_labels(x, grouping):
    clusters = GROUPINGS[grouping](x, (54, TOKENS), HW)
    assert clusters.labels[0] is not None and clusters.labels[1] is None
    assert clusters.num_clusters[1] == TOKENS
