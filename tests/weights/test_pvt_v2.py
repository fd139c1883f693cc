"""A ClusTR from PVTv2's weights: what is exact, what nearly, and what is refused."""

import hashlib
import os
import re
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pvt import HALF, of_mmdet, original, randomised, scenes
from safetensors import safe_open
from safetensors.torch import save_file

from clustr_mm import ClusTR
from clustr_mm.datasets.mini.scenes import make_scene
from clustr_mm.engine import run_tool
from clustr_mm.weights import from_pvt_v2
from clustr_mm.weights.calibrate import WindowAttention
from clustr_mm.weights.files import CheckpointError, load_pretrained, read_checkpoint
from clustr_mm.weights.photographs import read_photographs
from clustr_mm.weights.publish import publish
from clustr_mm.weights.pvt_v2 import pvt_v2

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'


def timm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The original's weights by timm's names."""
    named = {}
    for key, value in state.items():
        key = key.replace('patch_embed1.', 'patch_embed.').replace('dwconv.dwconv', 'dwconv')
        key = re.sub(r'^patch_embed(\d)', lambda m: f'stages.{int(m[1]) - 1}.downsample', key)
        key = re.sub(r'^block(\d)', lambda m: f'stages.{int(m[1]) - 1}.blocks', key)
        named[re.sub(r'^norm(\d)', lambda m: f'stages.{int(m[1]) - 1}.norm', key)] = value
    return named


def transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The original's weights by the names of transformers (its convert_pvt_v2_to_pytorch.py)."""
    named = {}
    for key, value in state.items():
        if key.startswith('head.'):
            named[key.replace('head', 'classifier')] = value
            continue
        part, stage, rest = re.fullmatch(r'(patch_embed|block|norm)(\d)\.(.*)', key).groups()
        place = dict(patch_embed='.patch_embedding', block='.blocks', norm='.layer_norm')[part]
        rest = re.sub(r'(^|\.)norm(\d)\.', r'\1layer_norm_\2.', rest)
        rest = rest.replace('fc', 'dense').replace('attn.norm', 'attn.layer_norm')
        if part == 'patch_embed':
            rest = rest.replace('norm', 'layer_norm')
        rest = rest.replace('attn.sr', 'attn.spatial_reduction').replace('attn.q.', 'attn.query.')
        name = f'pvt_v2.encoder.layers.{int(stage) - 1}{place}.{rest}'.replace('attn', 'attention')
        if '.kv.' in name:
            half = len(value) // 2
            named[name.replace('.kv.', '.key.')] = value[:half]
            named[name.replace('.kv.', '.value.')] = value[half:]
        else:
            named[name] = value
    return named


def loaded(made) -> ClusTR:
    network = ClusTR(made.arch).eval()
    state = {k[9:]: v for k, v in made.state_dict.items() if k.startswith('backbone.')}
    network.to(next(iter(state.values())).dtype).load_state_dict(state, strict=True)
    return network


@pytest.fixture(scope='module')
def b0():
    return original(of_mmdet().state_dict())


@pytest.fixture(scope='module')
def half():
    """A source of half the width, for what needs many passes."""
    return of_mmdet(width=16).state_dict()


def test_all_dialects_of_a_network_are_one(b0):
    made = from_pvt_v2(b0)
    assert made.arch == 'pvt_v2_b0'
    loaded(made)
    assert torch.equal(made.state_dict['head.fc.weight'], b0['head.weight'])
    mmdet = of_mmdet().state_dict()
    whole = {f'backbone.{key}': value for key, value in mmdet.items()}
    whole |= {f'head.fc.{key}': b0[f'head.{key}'] for key in ('weight', 'bias')}
    by_timm = {f'backbone.timm_model.{k}': v for k, v in timm(b0).items() if k[:5] != 'head.'}
    by_timm |= {f'head.fc.{key}': b0[f'head.{key}'] for key in ('weight', 'bias')}
    whole['neck.conv.weight'] = torch.zeros(1)
    for dialect in (timm(b0), by_timm, transformers(b0), whole):
        other = from_pvt_v2(dialect)
        assert other.state_dict.keys() == made.state_dict.keys()
        for key, value in made.state_dict.items():
            assert torch.equal(other.state_dict[key], value), key
    assert other.left_out == ('neck.conv.weight',)
    backbone = sum(v.numel() for k, v in made.state_dict.items() if k.startswith('backbone.'))
    assert made.exact + made.approximated + made.new == backbone
    assert made.approximated == sum(
        value.numel() for key, value in made.state_dict.items() if '.kvs.' in key
    )


def test_timms_own_network_is_read():
    models = pytest.importorskip('timm')
    network = randomised(models.create_model('pvt_v2_b0'))
    x = scenes(1)
    with torch.no_grad():
        torch.testing.assert_close(
            pvt_v2(network.state_dict())[0](x)[-1], network.forward_features(x), rtol=0, atol=2e-5
        )


@pytest.mark.parametrize(('dtype', 'atol'), [(torch.float32, 1e-5), (torch.float64, 1e-7)])
def test_all_but_keys_and_values_is_exact(dtype, atol):
    network = of_mmdet().to(dtype)
    x = scenes(2).to(dtype)
    with torch.no_grad():
        # The teacher that calibration and distillation learn from is PVTv2, attention and all.
        for ours, theirs in zip(pvt_v2(network.state_dict())[0](x), network(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2 * atol)
        for _, blocks, _ in list(network.layers)[:3]:
            for block in blocks:
                block.attn.attn.out_proj.weight.zero_()
                block.attn.attn.out_proj.bias.zero_()
        student = loaded(from_pvt_v2(network.state_dict()))
        for ours, theirs in zip(student(x), network(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def test_the_fold_is_exact_at_its_own_sigma():
    attention = randomised(WindowAttention(24, 3, 4))
    token = torch.randn(24, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        window = token.expand(1, 16, 24)
        weight, bias = attention.fold(attention.variance(window, (4, 4)).squeeze())
        expected = attention.windows(window, (4, 4))[0, 0].double()
    torch.testing.assert_close(weight @ token.double() + bias, expected, rtol=0, atol=1e-5)


def test_both_scales_get_the_fold_and_half_its_values(half):
    network = loaded(from_pvt_v2(half, HALF))
    attention = network.stages[1].blocks[0].attn
    teacher = pvt_v2(half, HALF)[0].stages[1].blocks[0]
    weight, bias = teacher.attn.fold(teacher.attn.expected_variance(teacher.norm1))
    for kv in attention.kvs:
        torch.testing.assert_close(kv.weight[:32].double(), weight[:32])
        torch.testing.assert_close(kv.weight[32:].double(), weight[32:] / 2)
        torch.testing.assert_close(kv.bias[32:].double(), bias[32:] / 2)
    assert not attention.token_weight.weight.any() and not attention.token_weight.bias.any()


def test_base_is_b3_with_a_block_that_changes_nothing():
    source = of_mmdet((3, 4, 18, 3), 64).state_dict()
    base, b3 = from_pvt_v2(source, 'base'), from_pvt_v2(source)
    assert (base.arch, b3.arch) == ('base', 'pvt_v2_b3')
    assert base.exact == b3.exact
    x = scenes(1, 64)
    network = loaded(base)
    with torch.no_grad():
        for one, other in zip(network(x), loaded(b3)(x), strict=True):
            assert torch.equal(one, other)
    # And it learns from the first step on.
    network(x)[-1].square().sum().backward()  # in training DropPath may leave the block out
    extra = network.stages[1].blocks[4]
    assert extra.attn.proj.weight.grad.any() and extra.mlp.fc2.weight.grad.any()


def block_errors(student: ClusTR, teacher: ClusTR, images: torch.Tensor) -> list[float]:
    """The error of every block's output with clusters, each network on its own path."""
    seen: list[list[torch.Tensor]] = [[], []]
    for network, outputs in zip((student, teacher), seen, strict=True):
        for stage in list(network.stages)[:3]:
            for block in stage.blocks:
                block.register_forward_hook(lambda *args, to=outputs: to.append(args[2]))
        with torch.no_grad():
            network(images)
    return [(a - b).square().mean().item() for a, b in zip(*seen, strict=True)]


def test_calibration_comes_nearer_the_teacher_however_images_are_batched(half):
    images = scenes(16)
    teacher, _ = pvt_v2(half, HALF)
    full = from_pvt_v2(half, HALF, [images], 'full')
    before = block_errors(loaded(from_pvt_v2(half, HALF)), teacher, images)
    after = block_errors(loaded(full), pvt_v2(half, HALF)[0], images)
    assert len(after) == 6
    assert all(new < old for new, old in zip(after, before, strict=True)), (before, after)
    again = from_pvt_v2(half, HALF, [images[:3], images[3:4], images[4:]], 'full')
    for key, value in full.state_dict.items():
        assert torch.equal(again.state_dict[key], value), key


def test_sigma_of_images_is_theirs(half):
    images = scenes(8)
    attention = pvt_v2(half, HALF)[0].stages[0].blocks[0].attn
    network = loaded(from_pvt_v2(half, HALF, [images]))
    with torch.no_grad():
        x, hw = network.stages[0].patch_embed(images)
        x = network.stages[0].blocks[0].norm1(x)
        windows = torch.nn.functional.avg_pool2d(x.mT.unflatten(2, hw), 8).flatten(2).mT
        inside = windows @ attention.sr.weight.sum((2, 3)).T + attention.sr.bias
        weight, _ = attention.fold(inside.double().var(-1, unbiased=False).mean())
    kv = network.stages[0].blocks[0].attn.kvs[0]
    torch.testing.assert_close(kv.weight[:16].double(), weight[:16], rtol=1e-4, atol=1e-5)


def refused(state, match, arch=None, **options):
    with pytest.raises(ValueError, match=match) as error:
        from_pvt_v2(state, arch, **options)
    assert '\n' not in str(error.value)


def test_what_does_not_fit_is_refused_by_name(b0):
    linear = {k: v[..., :1, :1] if '.sr.weight' in k else v for k, v in b0.items()}
    refused(linear, "'_li' variant")
    pooled = dict(b0) | {'block4.0.attn.sr.weight': torch.zeros(256, 256, 1, 1)}
    refused(pooled, "'_li' variant")
    hidden = {'fc1.weight': 0, 'fc1.bias': 0, 'dwconv.weight': 0, 'dwconv.bias': 0, 'fc2.weight': 1}
    b5 = {
        key: value.chunk(2, axes[0])[0] if (axes := [a for k, a in hidden.items() if k in key])
        else value
        for key, value in b0.items()
        if key.startswith(('block1', 'block2'))
    }  # fmt: skip
    refused(b0 | b5, r"MLP ratios are \(4, 4, 4, 4\), as b5's")
    refused({k: v for k, v in b0.items() if not k.startswith('block3.1')}, 'its depths')
    refused(b0, 'fits PVTv2 by a third only: its stage 3 is 256 wide, not 320', 'tiny')
    refused(b0, 'fits PVTv2 by a third only', 'small')
    refused(b0, 'base from pvt_v2_b3', 'base')
    refused(b0, 'arch pvt_v2_b1 does not fit the source, which is pvt_v2_b0', 'pvt_v2_b1')
    refused(b0, r'has embed_dims \(32, 64, 160, 256\), not \(16, 32, 80, 128\)', HALF)
    refused({k: v for k, v in b0.items() if k != 'block2.0.norm1.bias'}, 'keys missing')
    refused(b0 | {'block2.0.strange.bias': torch.zeros(1)}, 'strange')
    refused(from_pvt_v2(b0).state_dict, 'a ClusTR already')
    refused({'block1.0.attn.kv1.weight': torch.zeros(1)}, 'leave out --from pvt_v2')
    refused({'conv1.weight': torch.zeros(1)}, 'no PVTv2')


def test_images_that_would_do_harm_are_refused(half):
    images = scenes(8)
    refused(half, '7 distinct photographs', HALF, images=[images[:7], images[:1]])
    noise = torch.randn(8, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    refused(half, '0 distinct photographs, and 8 pictures', HALF, images=[noise])
    refused(half, '0 distinct photographs', HALF, images=[torch.zeros(8, 3, 96, 96)])
    refused(half, r'\(16, 16\) pixels', HALF, images=[images[..., :16, :16]])
    refused(half, 'full without images', HALF, calibration='full')
    with pytest.warns(UserWarning, match='left out 8 pictures'):
        made = from_pvt_v2(half, HALF, [images, noise])
    assert 'from 8 photographs' in made.how
    for key, value in from_pvt_v2(half, HALF, [images]).state_dict.items():
        assert torch.equal(made.state_dict[key], value)


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_dtypes(half, given, expected):
    made = from_pvt_v2({key: value.to(given) for key, value in half.items()}, HALF)
    assert {value.dtype for value in made.state_dict.values()} == {expected}


# ------------------------------------------------------------------------------------- the tool


def convert(*arguments: object) -> int:
    main = runpy.run_path(str(TOOL))['main']
    return run_tool(lambda _: main([str(each) for each in arguments] + ['--from', 'pvt_v2']))


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / 'photographs' / 'below'
    folder.mkdir(parents=True)
    for i in range(9):
        image = make_scene(0, 'train', i, (80, 120)).image
        Image.fromarray(image).save(folder / f'{i}.{"png" if i % 2 else "jpg"}')
    return folder.parent


def test_an_address_becomes_a_backbone(b0, tmp_path, server, photographs, capsys):
    save_file({k: v.contiguous() for k, v in timm(b0).items()}, tmp_path / 'served/b0.safetensors')
    target = tmp_path / 'ours.safetensors'
    options = (
        '--images',
        photographs,
        '--num-images',
        '8',
        '--image-size',
        '96',
        '--calibrate',
        'full',
    )
    assert convert(f'{server}/b0.safetensors', target, *options) == 0
    said, progress = capsys.readouterr()
    assert '6/6' in progress and 'ETA' in progress
    for words in ('pvt_v2_b0', 'exact (91.9%)', '247,808 approximated (8.1%)', '518 new (0.0%)'):
        assert words in said
    with safe_open(target, 'pt') as file:
        metadata = file.metadata()
    digest = hashlib.sha256((tmp_path / 'served/b0.safetensors').read_bytes())
    assert metadata['source'] == f'{server}/b0.safetensors'
    assert metadata['source_sha256'] == digest.hexdigest()
    assert metadata['licence'].startswith('Apache-2.0')
    assert '8 photographs' in metadata['how'] and 'least squares' in metadata['how']
    published = publish(str(target), str(tmp_path / 'published'))
    assert read_checkpoint(published)['meta']['licence'] == metadata['licence']
    network = ClusTR('pvt_v2_b0')
    load_pretrained(network, dict(checkpoint=str(target), prefix='backbone.'))
    pictures = read_photographs(str(photographs), 8, 96)
    made = from_pvt_v2(b0, images=pictures, calibration='full').state_dict
    key = 'stages.2.blocks.1.attn.kvs.1.weight'
    assert torch.equal(network.state_dict()[key], made[f'backbone.{key}'])


def test_a_damaged_or_wrong_file_is_one_line(b0, tmp_path, server, capsys):
    served, target = tmp_path / 'served', tmp_path / 'ours.pth'
    torch.save(b0, served / 'b0.pth')
    whole = (served / 'b0.pth').read_bytes()
    (served / 'short.pth').write_bytes(whole[:-1000])
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    (served / 'flipped.pth').write_bytes(flipped)
    (served / 'page.pth').write_text('<html>not found</html>')
    torch.save({'conv1.weight': torch.zeros(1)}, served / 'resnet.pth')
    torch.save(from_pvt_v2(b0).state_dict, served / 'converted.pth')
    expected = {
        'short.pth': 'not a checkpoint that can be read',
        'flipped.pth': 'not a checkpoint that can be read',
        'page.pth': 'not a checkpoint that can be read',
        'none.pth': 'cannot be fetched',
        'resnet.pth': 'no PVTv2',
        'converted.pth': 'a ClusTR already',
    }
    for name, words in expected.items():
        assert convert(f'{server}/{name}', target) == 1
        error = capsys.readouterr().err
        assert error.startswith('error: ') and error.count('\n') == 1 and words in error, error
    assert not target.exists()
    (served / 'short.pth').write_bytes(whole)  # what was cut short is not kept
    assert convert(f'{server}/short.pth', target) == 0
    assert read_checkpoint(target)['meta']['how'].endswith(
        'sigma from 32 drawn scenes, for want of photographs'
    )


def test_folders_and_options_that_cannot_be_are_one_line(b0, tmp_path, photographs, capsys):
    source, target = tmp_path / 'b0.pth', tmp_path / 'ours.pth'
    torch.save(b0, source)

    def fails(*options: object) -> str:
        assert convert(source, target, *options) == 1
        error = capsys.readouterr().err
        assert error.startswith('error: ') and error.count('\n') == 1
        return error

    stem = 'patch_embed1.proj.weight'
    four = {**b0, stem: torch.cat([b0[stem], b0[stem][:, :1]], 1)}
    assert from_pvt_v2(four).arch == 'pvt_v2_b0'
    torch.save(four, source)
    assert 'images of 3 channels, and the source takes 4; give' in fails('--image-size', 32)
    torch.save(b0, source)
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    (tmp_path / 'noise').mkdir()
    for i, image in enumerate(noise):
        Image.fromarray(image).save(tmp_path / 'noise' / f'{i}.png')
    assert 'as noise does' in fails('--images', tmp_path / 'noise')
    assert '0 distinct' in fails('--images', tmp_path / 'none')
    assert 'too small' in fails('--images', photographs, '--image-size', 16)
    assert 'too few' in fails('--images', photographs, '--num-images', 4)
    assert 'add --images' in fails('--calibrate', 'full')
    (photographs / 'noise.png').write_bytes(b'no image')
    assert 'noise.png is no image' in fails('--images', photographs)
    os.unlink(photographs / 'noise.png')
    for i in range(1, 9):
        name = f'below/{i}.{"png" if i % 2 else "jpg"}'
        Image.open(photographs / 'below/0.jpg').save(photographs / name, quality=95)
    assert 'distinct' in fails('--images', photographs)


# ----------------------------------------------------------------------------- PVTv2 in a config


@pytest.mark.parametrize('prefix', ['backbone.', None])
@pytest.mark.parametrize('dialect', [dict, timm, transformers])
def test_a_config_that_names_pvt_v2_itself_says_what_to_do(b0, tmp_path, dialect, prefix):
    torch.save(dialect(b0), tmp_path / 'b0.pth')
    init_cfg = dict(checkpoint=str(tmp_path / 'b0.pth'))
    with pytest.raises(CheckpointError, match='convert_checkpoint.py .*b0.pth .*--from pvt_v2'):
        load_pretrained(ClusTR('pvt_v2_b0'), init_cfg | (dict(prefix=prefix) if prefix else {}))


# --------------------------------------------------------------------- images of other channels


def save_backbone(path: Path) -> ClusTR:
    network = ClusTR(HALF).eval()
    torch.save({f'backbone.{key}': value for key, value in network.state_dict().items()}, path)
    return network


def test_weights_for_three_channels_start_a_network_for_others(tmp_path):
    trained, images = save_backbone(tmp_path / 'x.pth'), scenes(2)
    init_cfg = dict(checkpoint=str(tmp_path / 'x.pth'), prefix='backbone.')
    grey = ClusTR(HALF, in_channels=1).eval()
    with pytest.warns(UserWarning, match='for images of 3 channels; .* made one for 1'):
        load_pretrained(grey, init_cfg)
    with torch.no_grad():
        one = images[:, :1]
        torch.testing.assert_close(
            grey.stages[0].patch_embed(one)[0],
            trained.stages[0].patch_embed(one.expand(-1, 3, -1, -1))[0],
        )
    five = ClusTR(HALF, in_channels=5)
    with pytest.warns(UserWarning, match='made one for 5'):
        load_pretrained(five, init_cfg)
    weight, given = (n.stages[0].patch_embed.proj.weight for n in (five, trained))
    torch.testing.assert_close(weight[:, 3], given[:, 0] * 3 / 5)
    torch.testing.assert_close(weight[:, 2], given[:, 2] * 3 / 5)
    # What was saved for its own number of channels is loaded as it is, without a word.
    torch.save(five.state_dict(), tmp_path / 'five.pth')
    again = ClusTR(HALF, in_channels=5)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_pretrained(again, dict(checkpoint=str(tmp_path / 'five.pth')))
    assert torch.equal(again.stages[0].patch_embed.proj.weight, weight)
    with pytest.raises(CheckpointError, match='shapes differ'):
        load_pretrained(ClusTR(HALF), dict(checkpoint=str(tmp_path / 'five.pth')))


def test_a_pvt_v2_of_other_channels_makes_a_clustr_of_them(half):
    wide = dict(half)
    key = 'layers.0.0.projection.weight'
    wide[key] = wide[key][:, [0, 1, 2, 0]]
    state = from_pvt_v2(wide, HALF).state_dict
    assert state['backbone.stages.0.patch_embed.proj.weight'].shape[1] == 4
