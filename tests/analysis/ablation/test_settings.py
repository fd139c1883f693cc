"""Settings in words: what they mean, which are refused, and that all share one set of weights."""

import pytest
import torch
from small import NARROW

from clustr_mm import ClusTR
from clustr_mm.analysis.ablation.settings import PART_SETTINGS, build_settings, knob_settings
from clustr_mm.analysis.peers import parse_setting

BACKBONE = dict(type='ClusTR', arch=NARROW)


@pytest.mark.parametrize(
    ('text', 'options'),
    [
        ('exact', {}),
        ('cluster_window=56', dict(cluster_window=56)),
        ('recluster_every=0+cluster_window=None', dict(recluster_every=0, cluster_window=None)),
        ('cluster_window=56+fine_scope=window', dict(cluster_window=56, fine_scope='window')),
        ("fine_scope='window'", dict(fine_scope='window')),
        ('scales=(1,4,16)', dict(scales=(1, 4, 16))),
        ('grouping=random', dict(grouping='random')),
    ],
)
def test_a_setting_is_read(text, options):
    assert parse_setting(text) == options


@pytest.mark.parametrize('text', ['', 'fast', 'k=', '=5', 'k=5+', 'k', 'a b=1'])
def test_a_setting_that_cannot_be_read_is_named(text):
    with pytest.raises(ValueError, match=r"setting is .*; use 'exact' or KEY=VALUE"):
        parse_setting(text)


def test_a_key_twice_is_refused():
    with pytest.raises(ValueError, match='has k twice'):
        parse_setting('k=5+k=6')


def test_the_knobs_combine_into_six_settings_that_all_build():
    names = knob_settings()
    assert len(names) == len(set(names)) == 6 and names[0] == 'exact'
    assert 'recluster_every=0+cluster_window=56+fine_scope=window' in names
    assert set(build_settings(BACKBONE, names)) == set(names)


def test_settings_start_from_the_exact_form_whatever_the_config_says():
    backbone = dict(
        BACKBONE, k=3, cluster_window=56, recluster_every=0, out_indices=(3,), drop_path_rate=0.3
    )
    exact, window = build_settings(backbone, ['cluster_window=8']).values()
    attention = exact.stages[0].blocks[0].attn
    assert (attention.k, attention.cluster_window, attention.fine_scope) == (3, None, 'global')
    assert exact.stages[0].recluster_every == 1
    assert window.stages[0].blocks[0].attn.cluster_window == 8
    assert not exact.training and len(exact(torch.randn(1, 3, 32, 32))) == 4


def test_all_settings_use_the_same_weights(tmp_path):
    trained = ClusTR(arch=NARROW)
    path = tmp_path / 'model.pth'
    torch.save({f'backbone.{k}': v for k, v in trained.state_dict().items()}, path)
    models = build_settings(BACKBONE, ['scales=(1,)', 'grouping=grid', 'k=3'], str(path))
    assert list(models) == ['exact', 'scales=(1,)', 'grouping=grid', 'k=3']
    expected = trained.stages[0].blocks[0].mlp.fc1.weight
    for model in models.values():
        weight = model.stages[0].blocks[0].mlp.fc1.weight
        assert torch.equal(weight, expected)
        assert weight.data_ptr() == models['exact'].stages[0].blocks[0].mlp.fc1.weight.data_ptr()
    assert len(models['scales=(1,)'].stages[0].blocks[0].attn.kvs) == 1


def test_reductions_change_the_cluster_counts_alone():
    exact, fewer = build_settings(BACKBONE, ['reductions=(16,8,4,1)']).values()
    attention = fewer.stages[0].blocks[0].attn
    assert attention.num_clusters(3136) == (12, 48)
    assert exact.stages[0].blocks[0].attn.num_clusters(3136) == (49, 196)
    assert torch.equal(attention.q.weight, exact.stages[0].blocks[0].attn.q.weight)
    (_, small) = build_settings(
        dict(type='ClusTR', arch='tiny'), ['reductions=(16,8,4,1)']
    ).values()
    assert small.stages[2].blocks[0].attn.reduction == 4


def test_a_third_scale_has_random_weights_beside_the_shared_ones(tmp_path):
    settings = ['scales=(1,4,16)']
    exact, three = build_settings(BACKBONE, settings).values()
    again = build_settings(BACKBONE, settings)[settings[0]]
    kvs = three.stages[0].blocks[0].attn.kvs
    assert len(kvs) == 3 and three.stages[0].blocks[0].attn.num_clusters(64) == (1, 4, 16)
    assert torch.equal(kvs[1].weight, exact.stages[0].blocks[0].attn.kvs[1].weight)
    assert torch.equal(kvs[2].weight, again.stages[0].blocks[0].attn.kvs[2].weight)
    path = tmp_path / 'model.pth'
    torch.save({f'backbone.{k}': v for k, v in exact.state_dict().items()}, path)
    with pytest.raises(ValueError, match='needs 12 parameters that the exact form lacks'):
        build_settings(BACKBONE, settings, str(path))


def test_parts_are_settings_that_build():
    assert PART_SETTINGS[0] == 'exact' and PART_SETTINGS[-1] == 'grouping=dense'
    assert list(build_settings(BACKBONE, PART_SETTINGS)) == list(PART_SETTINGS)


def test_random_weights_come_from_the_seed():
    first, again, other = (
        build_settings(BACKBONE, [], seed=seed)['exact'].stages[0].patch_embed.proj.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('cluster_windw=56', "no option 'cluster_windw'; did you mean 'cluster_window'"),
        (
            'grouping=kmean',
            r"grouping is 'kmean'; use \['balanced', 'dense', 'grid', 'kmeans', 'random'\]",
        ),
        ('grouping=grid+cluster_window=56', 'leave cluster_window out'),
        ('reductions=(4,2,1,1)', r'in the places where \(8, 4, 2, 1\) has it'),
        ('reductions=4', 'use 4 numbers'),
        ('qkv_bias=False+in_channels=4', 'needs 1 parameters that the exact form lacks'),
        ('fine_scope=window', "setting 'fine_scope=window': .* without windows"),
        ('k=many', "setting 'k=many': "),
    ],
)
def test_a_setting_that_is_none_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        build_settings(BACKBONE, [text])
