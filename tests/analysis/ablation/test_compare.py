"""The table of settings: shifts are what their definition says, checked block by block."""

from collections import Counter
from functools import partial

import pytest
import torch
from small import NARROW

from clustr_mm import ClusTR
from clustr_mm.analysis.ablation.compare import Ablation, compare_blocks
from clustr_mm.analysis.ablation.settings import build_settings
from clustr_mm.analysis.ablation.statistics import cluster_statistics
from clustr_mm.analysis.flops import count_macs
from clustr_mm.models import Clusters

ARCH = {**NARROW, 'depths': (3, 1, 2, 1)}
build = partial(build_settings, dict(type='ClusTR', arch=ARCH))


@pytest.fixture(scope='module')
def image():
    return torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def quotient(value, reference):
    return ((value - reference).norm() / reference.norm()).item()


@torch.no_grad()
def first_stage(model, image):
    """(input, H and W, exact attention's output) of every block of the first stage."""
    stage = model.stages[0]
    x, hw = stage.patch_embed(image)
    for block in stage.blocks:
        y = block.norm1(x)
        yield y, hw, block.attn(y, hw)
        x = block(x, hw, block.cluster(x, hw))


def test_shift_is_of_the_attention_on_the_exact_runs_tokens(image):
    name = 'cluster_window=8+fine_scope=window'
    models = build([name])
    shifts = compare_blocks(models, image).shifts['exact']
    other = models[name].stages[0]
    for index, (x, hw, exact) in enumerate(first_stage(models['exact'], image)):
        expected = quotient(other.blocks[index].attn(x, hw), exact)
        assert shifts[name][0][index] == pytest.approx(expected, rel=1e-4)
        assert expected > 0.01
    assert [len(stage) for stage in shifts[name]] == [3, 1, 2]
    assert shifts['exact'] == [[0.0] * 3, [0.0], [0.0] * 2]


def test_reclustering_less_often_keeps_the_clusters_of_an_earlier_block(image):
    models = build(['recluster_every=0', 'recluster_every=2', 'grouping=grid+recluster_every=0'])
    shifts = compare_blocks(models, image).shifts['exact']
    blocks = models['exact'].stages[0].blocks
    steps = list(first_stage(models['exact'], image))
    clusters = blocks[0].attn.cluster(*steps[0][:2])
    assert shifts['recluster_every=0'][0][0] == 0
    for index in (1, 2):
        x, hw, exact = steps[index]
        expected = quotient(blocks[index].attn(x, hw, clusters), exact)
        assert shifts['recluster_every=0'][0][index] == pytest.approx(expected, rel=1e-4)
        assert expected > 1e-3
    assert shifts['recluster_every=2'][0][1] == shifts['recluster_every=0'][0][1]
    assert shifts['recluster_every=2'][0][2] == 0


def test_a_window_as_large_as_the_image_changes_nothing(image):
    ablation = Ablation(build(['cluster_window=1000']))
    ablation.add(image)
    exact, window = ablation.rows()
    assert (exact.setting, window.setting) == ('exact', 'cluster_window=1000')
    assert window.attention == exact.attention == ((0.0, 0.0),) * 3
    assert window.maps == exact.maps == (0.0,) * 4
    assert exact.ratio == 1 and exact.seconds > 0 and exact.to_dense is None


@pytest.mark.slow
def test_rows_are_means_and_worsts_over_blocks_and_images(image):
    name = 'cluster_window=8'
    models = build([name, 'grouping=dense'])
    ablation = Ablation(models, rounds=2)
    images = [image, image.flip(3)[..., :80].contiguous()]
    for each in images:
        ablation.add(each)
    _, window, dense = ablation.rows()
    both = [compare_blocks(models, each, ['exact', 'grouping=dense']).shifts for each in images]
    for shifts, reference in ((window.attention, 'exact'), (window.to_dense, 'grouping=dense')):
        for stage, (mean, worst) in enumerate(shifts):
            values = [value for each in both for value in each[reference][name][stage]]
            assert mean == pytest.approx(sum(values) / len(values))
            assert worst == max(values) > 0
    with torch.no_grad():
        for stage, shift in enumerate(window.maps):
            expected = [quotient(models[name](i)[stage], models['exact'](i)[stage]) for i in images]
            assert shift == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert dense.to_dense == ((0.0, 0.0),) * 3 and min(dense.maps) > 0


def test_other_groupings_run_as_whole_networks(image):
    ablation = Ablation(build(['grouping=random', 'grouping=grid']))
    ablation.add(image)
    for row in ablation.rows()[1:]:
        assert all(0 < mean < 2 for mean, _ in row.attention)
        assert all(0 < shift < 2 for shift in row.maps)


def test_dense_attention_has_as_many_scales_as_the_setting(image):
    models = build(['scales=(1,)', 'grouping=dense'])
    shifts = compare_blocks(models, image, ['grouping=dense']).shifts['grouping=dense']
    attention = models['scales=(1,)'].stages[0].blocks[0].attn
    x, hw, _ = next(first_stage(models['exact'], image))
    everywhere = Clusters((None,), (x.shape[1],))
    expected = quotient(attention(x, hw), attention(x, hw, everywhere))
    assert shifts['scales=(1,)'][0][0] == pytest.approx(expected, rel=1e-4)
    assert shifts['grouping=dense'] == [[0.0] * 3, [0.0], [0.0] * 2]


def test_rows_have_multiply_adds_and_clusters(image):
    names = ['grouping=kmeans', 'recluster_every=0', 'scales=(1,)']
    models = build(names)
    ablation = Ablation(models)
    ablation.add(image)
    exact, kmeans, once, coarse = ablation.rows()
    count = sum(count_macs(ClusTR(arch=ARCH), 96, 128).values(), Counter())
    assert exact.gmac == pytest.approx(count.total() / 1e9)
    assert once.gmac < exact.gmac and next(models['exact'].parameters()).device.type == 'cpu'
    # Six assignments to the centres of every scale in place of the distances of all to all.
    n = [(24 * 32, 16, (12, 48), 3), (12 * 16, 32, (12, 48), 1), (6 * 8, 48, (12, 48), 2)]
    paid, merges = 0, 0
    for tokens, channels, counts, blocks in n:
        for m in counts:
            if m < tokens:
                paid += blocks * 6 * tokens * m * channels
                merges += blocks * 5 * tokens * (channels + 1)
    assert kmeans.gmac * 1e9 == pytest.approx(
        count.total() - count['clustering'] + paid + merges, rel=0.02
    )
    assert [scale.clusters for scale in exact.clusters[0]] == [12, 48]
    assert len(coarse.clusters[0]) == 1
    labels = models['exact'].cluster_maps(image)[1][0][0].flatten(1)
    assert exact.clusters[1][0] == cluster_statistics(labels, 12, (12, 16))


def test_what_cannot_be_compared_is_refused():
    models = build(['k=3'])
    with pytest.raises(ValueError, match="the 'exact' form must be among them"):
        Ablation({'k=3': models['k=3']})
    with pytest.raises(ValueError, match='rounds is 0'):
        Ablation(models, rounds=0)
    with pytest.raises(ValueError, match='add one first'):
        Ablation(models).rows()
