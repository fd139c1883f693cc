"""The backbone: facts of the variants, shapes, options, determinism, odd inputs."""

import subprocess
import sys

import pytest
import torch
from small import NARROW

from clustr_mm.models import ClusterAttention, ClusTR
from clustr_mm.models.clustr import ARCHS, DropPath


def images(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize(
    ('arch', 'parameters'), [('tiny', 11_682_417), ('small', 22_690_941), ('base', 40_246_210)]
)
def test_parameters_with_the_head(arch, parameters):
    head = ARCHS[arch]['embed_dims'][-1] * 1000 + 1000
    assert sum(p.numel() for p in ClusTR(arch=arch).parameters()) + head == parameters


@pytest.mark.parametrize('channels', [1, 4])
def test_other_image_channels(channels):
    assert ClusTR(arch=NARROW, in_channels=channels)(images(1, channels, 32, 32))[0].shape[1] == 16


def test_evaluation_is_deterministic():
    net = ClusTR(arch=NARROW).eval()
    x = images(2, 3, 100, 75)
    first = net(x)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, net(x), strict=True))


def test_images_of_a_batch_do_not_meet():
    net = ClusTR(arch=NARROW).double().eval()
    x = images(3, 3, 64, 64, dtype=torch.float64)
    together = net(x)
    for i in range(3):
        for a, b in zip(together, net(x[i : i + 1]), strict=True):
            torch.testing.assert_close(a[i : i + 1], b, rtol=0, atol=1e-12)


@pytest.mark.parametrize('crop_padding', [True, False])
def test_padding_joins_no_cluster_if_it_is_cropped(crop_padding):
    net = ClusTR(arch=NARROW, crop_padding=crop_padding).double().eval()
    sizes = [(70, 90), (96, 60), (70, 90), (96, 96)]
    batch = torch.zeros(4, 3, 96, 96, dtype=torch.float64)
    alone = []
    for i, (height, width) in enumerate(sizes):
        image = images(4, 3, height, width, dtype=torch.float64)[i]
        batch[i, :, :height, :width] = image
        alone.append(net(image[None]))
    together = net(batch)
    moved = 0.0
    for i, maps in enumerate(alone):
        for whole, m in zip(together, maps, strict=True):
            moved = max(moved, (whole[i, :, : m.shape[2], : m.shape[3]] - m[0]).abs().max().item())
    assert [m.shape[2:] for m in together] == [(24, 24), (12, 12), (6, 6), (3, 3)]
    # A map's values have a spread of 1: with padding among the clusters they move by as much.
    assert moved < 1e-12 if crop_padding else moved > 0.1


def test_an_image_of_zeros_has_no_padding():
    net = ClusTR(arch=NARROW, crop_padding=True).eval()
    assert all(m.isfinite().all() for m in net(torch.zeros(2, 3, 64, 64)))


@pytest.mark.parametrize('recluster_every', [0, 1, 2])
def test_checkpointing_keeps_outputs_and_gradients(recluster_every):
    results = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        net = ClusTR(arch=NARROW, with_cp=with_cp, recluster_every=recluster_every).double()
        x = images(2, 3, 64, 64, dtype=torch.float64).requires_grad_()
        torch.manual_seed(1)  # drop path draws again in the backward pass
        loss = sum(m.square().mean() for m in net(x))
        loss.backward()
        results.append([loss, x.grad, *(p.grad for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 3])
def test_frozen_stages(frozen_stages):
    net = ClusTR(arch=NARROW, frozen_stages=frozen_stages)
    net.train()
    for i, stage in enumerate(net.stages):
        frozen = i <= frozen_stages
        assert all(p.requires_grad != frozen for p in stage.parameters())
        assert stage.training != frozen


def test_norm_eval():
    net = ClusTR(arch=NARROW, norm_eval=True)
    net.train()
    norms = [m for m in net.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert norms and not any(m.training for m in norms)
    assert net.stages[0].blocks[0].mlp.training


def test_drop_path_grows_from_0_to_the_rate():
    net = ClusTR(arch='small', drop_path_rate=0.3)
    rates = [m.rate for m in net.modules() if isinstance(m, DropPath)]
    assert len(rates) == 23 and rates[0] == 0 and rates[-1] == pytest.approx(0.3)
    assert rates == pytest.approx([0.3 * i / 22 for i in range(23)])


def test_drop_path_keeps_the_expectation():
    torch.manual_seed(0)
    out = DropPath(0.25)(torch.ones(20_000, 2))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out[:, 0] == out[:, 1]).all(), 'whole images'
    assert out.mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('value', [0.0, 1.0])
def test_autocast_of_a_flat_image_is_finite(dtype, value):
    net = ClusTR(arch=NARROW)
    for parameter in net.parameters():  # weights large enough to overflow exp in half precision
        if parameter.dim() == 2 and parameter.shape[0] == 1:
            torch.nn.init.constant_(parameter, 5.0)
    x = torch.full((2, 3, 96, 96), value)
    with torch.autocast('cpu', dtype=dtype):
        maps = net(x)
        loss = sum(m.float().square().mean() for m in maps)
    loss.backward()
    assert all(m.isfinite().all() for m in maps)
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize('fine_scope', ['global', 'window'])
@pytest.mark.parametrize('recluster_every', [0, 1, 2])
def test_knobs_run_and_train(fine_scope, recluster_every):
    net = ClusTR(
        arch=NARROW, cluster_window=12, fine_scope=fine_scope, recluster_every=recluster_every
    )
    sum(m.square().mean() for m in net(images(2, 3, 70, 129))).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_knobs_change_nothing_where_there_is_one_window_and_one_block():
    arch = {**NARROW, 'depths': (1, 1, 1, 1)}
    exact = ClusTR(arch=arch).eval()
    knobs = ClusTR(arch=arch, cluster_window=56, fine_scope='window', recluster_every=0).eval()
    knobs.load_state_dict(exact.state_dict())
    x = images(1, 3, 224, 224)
    assert all(torch.equal(a, b) for a, b in zip(exact(x), knobs(x), strict=True))


@pytest.mark.parametrize('with_cp', [False, True])
def test_recluster_every_counts_clusterings(with_cp, monkeypatch):
    calls = []
    original = ClusterAttention.cluster
    monkeypatch.setattr(
        ClusterAttention, 'cluster', lambda self, *a: calls.append(1) or original(self, *a)
    )
    for every, expected in ((1, 6), (2, 1 + 1 + 2), (0, 3)):
        calls.clear()
        net = ClusTR(arch=NARROW, recluster_every=every, with_cp=with_cp)
        sum(m.mean() for m in net(images(1, 3, 64, 64))).backward()
        assert len(calls) == expected, 'the backward pass finds none again'


def test_cluster_maps():
    net = ClusTR(arch=NARROW).eval()
    maps = net.cluster_maps(images(2, 3, 128, 96))
    assert [len(stage) for stage in maps] == [1, 2, 3, 0]
    coarse, fine = maps[0][0]
    assert coarse.shape == fine.shape == (2, 32, 24)
    assert [len(m[0].unique()) for m in (coarse, fine)] == [12, 48]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='smal'), "arch is 'smal'; use one of"),
        (dict(arch=dict(depths=(1,))), 'arch has the keys'),
        (dict(arch={**NARROW, 'depths': (1, 2)}), 'one value for each stage'),
        (dict(out_indices=(0, 4)), r'out_indices is \(0, 4\)'),
        (dict(out_indices=()), 'out_indices is'),
        (dict(frozen_stages=4), 'frozen_stages is 4'),
        (dict(drop_path_rate=1.0), 'drop_path_rate is 1.0'),
        (dict(recluster_every=-1), 'recluster_every is -1'),
        (dict(fine_scope='window'), 'set cluster_window'),
        (dict(out_indices=(-5,)), r'out_indices is \(-5,\); use indices from 0 to 3, or from -1'),
        (dict(out_indices=(0, -4)), 'each index once'),
        (dict(out_indices=(0.0, 1)), 'out_indices is 0.0; use an integer'),
        (dict(scales=[1.0, 4.0]), 'a scale is 1.0; use an integer'),
        (dict(k=5.0), 'k is 5.0; use an integer'),
        (dict(cluster_window=8.0), 'cluster_window is 8.0; use an integer'),
        (dict(arch={**NARROW, 'depths': '1111'}), r"arch\['depths'\] is '1'; use an integer"),
        (dict(arch={**NARROW, 'embed_dims': (16, 32, 48, 64.0)}), 'is 64.0; use an integer'),
        (dict(arch={**NARROW, 'num_heads': (1, 2, 3, 0)}), 'use values from 1'),
    ],
)
def test_what_cannot_be_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClusTR(**{'arch': NARROW, **arguments})


@pytest.mark.parametrize('shape', [(3, 32, 32), (1, 4, 32, 32), (0, 3, 32, 32), (1, 3, 0, 32)])
def test_what_is_no_image_batch_is_refused_by_name(shape):
    with pytest.raises(ValueError, match='images have shape'):
        ClusTR(arch=NARROW)(torch.zeros(shape))


def test_import_needs_torch_alone_and_prints_nothing():
    code = (
        'import sys\n'
        "for name in ('mmengine', 'mmcv', 'cv2', 'numpy', 'triton'): sys.modules[name] = None\n"
        'import torch, clustr_mm\n'
        "clustr_mm.ClusTR(arch='tiny')(torch.zeros(1, 3, 32, 32))\n"
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
