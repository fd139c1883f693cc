"""timm's contract with a model, as its own tests of models state it, kept by our names."""

import pytest
import torch
from small import NARROW
from torch import nn

pytest.importorskip('timm')

import timm
from timm.models import build_model_with_cfg, save_for_hf
from timm.models._manipulate import group_parameters
from timm.optim import create_optimizer_v2

from clustr_mm import models
from clustr_mm.integrations.timm import ClusTR
from clustr_mm.weights.files import CheckpointError, adapt_stem, save_checkpoint
from clustr_mm.weights.publish import publish

NAMES = [f'clustr_{arch}' for arch in models.ARCHS]
SMALL = 'clustr_pvt_v2_b0'
CHANNELS = [32, 64, 160, 256]


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def narrow(**options) -> ClusTR:
    """A network of fewer channels, built as timm builds one."""
    torch.manual_seed(0)
    cfg = dict(num_classes=10, first_conv='stages.0.patch_embed.proj', classifier='head.fc')
    return build_model_with_cfg(ClusTR, 'narrow', False, cfg, arch=NARROW, **options)


@pytest.fixture(scope='module')
def net() -> ClusTR:
    """The smallest name with 10 classes, for tests that leave it as it is."""
    torch.manual_seed(0)
    return timm.create_model(SMALL, num_classes=10).eval()


@pytest.fixture(scope='module')
def whole(net, tmp_path_factory) -> dict:
    """Files of a whole model as training, publishing and the safetensors format write them."""
    folder = tmp_path_factory.mktemp('files')
    weights = {
        key if key.startswith('head.') else f'backbone.{key}': value
        for key, value in net.state_dict().items()
    }
    files = dict(pth=folder / 'whole.pth', safetensors=folder / 'whole.safetensors')
    for file in files.values():
        save_checkpoint(weights, file)
    files['published'] = publish(str(files['pth']), str(folder))
    files['bare'] = folder / 'bare.pth'
    torch.save({k: v for k, v in net.state_dict().items() if 'head' not in k}, files['bare'])
    return files


# --- what timm's tests of all models assert ------------------------------------------------------


def test_a_name_for_every_variant():
    assert sorted(timm.list_models('clustr_*')) == sorted(NAMES)
    assert not timm.list_pretrained('clustr_*')
    with pytest.raises(RuntimeError, match='No pretrained weights exist'):
        timm.create_model(SMALL, pretrained=True)


@pytest.mark.parametrize('name', NAMES)
def test_forward_and_the_names_in_the_default_cfg(name):
    model = timm.create_model(name).eval()
    with torch.no_grad():
        out = model(images(1, 3, 64, 64))
    assert out.shape == (1, 1000) and not out.isnan().any()
    assert isinstance(model, models.ClusTR) and f'clustr_{model.arch}' == name
    cfg, state = model.default_cfg, model.state_dict()
    assert model.pretrained_cfg is cfg and cfg['architecture'] == name
    assert f'{cfg["classifier"]}.weight' in state and f'{cfg["first_conv"]}.weight' in state
    assert model.get_classifier() is model.get_submodule(cfg['classifier'])


@pytest.mark.parametrize('name', [SMALL, 'clustr_tiny'])
def test_backward_reaches_every_parameter(name):
    model = timm.create_model(name, num_classes=42).train()
    out = model(images(2, 3, 64, 64))
    out.mean().backward()
    assert out.shape == (2, 42) and not out.isnan().any()
    assert not [key for key, value in model.named_parameters() if value.grad is None]


def test_the_default_cfgs_sizes_and_the_classifier_that_goes():
    model = timm.create_model(SMALL).eval()
    height, width = model.default_cfg['pool_size']
    x = images(1, *model.default_cfg['input_size'])
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (1, model.num_features, height, width)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (1, model.head_hidden_size)
        assert torch.equal(model(x), model.get_classifier()(pooled))
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
        model.reset_classifier(0, '')
        assert torch.equal(model(x), features)
        model.reset_classifier(7, 'max')
        assert model(x).shape == (1, 7) and model.num_classes == 7
        model = timm.create_model(SMALL, num_classes=0, global_pool='').eval()
        assert model(x).shape == features.shape
        assert isinstance(model.get_classifier(), nn.Identity)


@pytest.mark.parametrize('pool', ['max', 'avgmax', 'catavgmax'])
def test_other_than_the_default_cfg(pool):
    model = narrow(global_pool=pool, in_chans=5, num_classes=6, drop_rate=0.5, drop_path_rate=0.3)
    assert model.head.drop.p == 0.5
    rates = [module.rate for module in model.modules() if hasattr(module, 'rate')]
    assert (min(rates), max(rates)) == (0, 0.3)
    assert model.eval()(images(2, 5, 64, 64)).shape == (2, 6)
    assert (model.in_chans, model.num_classes) == (5, 6)


def test_device_and_dtype():
    assert {p.device.type for p in narrow(device='meta').parameters()} == {'meta'}
    model = narrow(dtype=torch.bfloat16).eval()
    assert model(images(1, 3, 32, 32).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ('given', 'stages'),
    [
        ({}, [0, 1, 2, 3]),
        (dict(out_indices=(0, 2)), [0, 2]),
        (dict(out_indices=(1,)), [1]),
        (dict(out_indices=(-2, -1)), [2, 3]),
        (dict(out_indices=2), [2, 3]),  # the last two
    ],
)
def test_features_are_the_maps_and_the_info_says_so(net, given, stages):
    x = images(2, 3, 70, 90)
    torch.manual_seed(0)
    maps = (model := timm.create_model(SMALL, features_only=True, **given).eval())(x)
    torch.manual_seed(0)
    wanted = models.ClusTR('pvt_v2_b0', out_indices=stages).eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(maps, wanted, strict=True))
    info = model.feature_info
    assert info.channels() == [each.shape[1] for each in maps] == [CHANNELS[s] for s in stages]
    assert info.reduction() == [4 * 2**s for s in stages]
    assert info.module_name() == [f'stages.{s}' for s in stages]
    assert len(model.model.stages) == stages[-1] + 1, 'what is not asked for is gone'


def test_features_backward_reaches_every_parameter():
    model = timm.create_model(SMALL, features_only=True, out_indices=(0, 2)).train()
    sum(each.mean() for each in model(images(2, 3, 64, 64))).backward()
    assert not [key for key, value in model.named_parameters() if value.grad is None]


def test_forward_intermediates(net):
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        last, maps = net.forward_intermediates(x)
        assert torch.equal(last, net.forward_features(x)) and torch.equal(last, maps[-1])
        assert [each.shape[1] for each in maps] == CHANNELS
        last, (one,) = net.forward_intermediates(x, indices=[1])
        assert torch.equal(one, maps[1]) and torch.equal(last, maps[3])
        last, _ = net.forward_intermediates(x, indices=[1], stop_early=True)
        assert torch.equal(last, maps[1])
        two = net.forward_intermediates(x, indices=2, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(two, maps[2:], strict=True))
    with pytest.raises(ValueError, match='output_fmt'):
        net.forward_intermediates(x, output_fmt='NLC')
    with pytest.raises(AssertionError):
        net.forward_intermediates(x, indices=[4])


def test_prune_intermediate_layers():
    model = narrow().eval()
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
        assert model.prune_intermediate_layers([-4, 1], prune_head=False) == [0, 1]
        assert len(model.stages) == 2 and model.num_features == maps[1].shape[1]
        assert torch.equal(model(x), maps[1]), 'the head was of another width'
        model.reset_classifier(3, 'avg')
        assert model(x).shape == (1, 3)


@pytest.mark.parametrize('kind', ['hook', 'fx'])
def test_other_ways_to_the_features(net, kind):
    model = timm.create_model(SMALL, features_only=True, feature_cls=kind, out_indices=(1, 3))
    inner = model.graph_module if kind == 'fx' else model.body
    weights = {k: v for k, v in net.state_dict().items() if 'head' not in k}
    inner.load_state_dict(weights)
    x = images(1, 3, 64, 64)
    wanted = net.forward_intermediates(x, indices=[1, 3], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(model.eval()(x), wanted, strict=True))


@pytest.mark.parametrize('train', [False, True])
def test_the_symbolic_trace_is_the_model(train):
    model = narrow(drop_path_rate=0.0).train(train)
    x = images(2, 3, 64, 64)
    traced = timm.models.create_feature_extractor(model, ['head.fc']).train(train)
    out = traced(x)['head.fc']
    assert torch.equal(out, model(x))
    out.mean().backward()
    assert not [key for key, value in traced.named_parameters() if value.grad is None]


# --- what training and other libraries ask for ---------------------------------------------------


def test_layers_of_the_group_matcher_are_those_of_layer_decay(net):
    layers = group_parameters(net, net.group_matcher(), reverse=True)
    assert layers == {name: net.get_layer_depth(name)[0] for name, _ in net.named_parameters()}
    coarse = group_parameters(net, net.group_matcher(coarse=True), reverse=True)
    assert [coarse[f'stages.{s}.blocks.0.norm1.weight'] for s in range(4)] == [1, 2, 3, 4]
    assert (coarse['stages.0.patch_embed.norm.bias'], coarse['head.fc.bias']) == (0, 5)


def test_timms_optimizer_decays_layers_and_weights(net):
    optimizer = create_optimizer_v2(net, 'adamw', lr=1.0, weight_decay=0.1, layer_decay=0.5)
    groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    for name, parameter in net.named_parameters():
        layer, layers = net.get_layer_depth(name)
        group = groups[id(parameter)]
        assert group['lr_scale'] == 0.5 ** (layers - 1 - layer)
        assert group['weight_decay'] == (0.1 if parameter.dim() > 1 else 0), name
    assert net.no_weight_decay() == set()


def test_gradient_checkpointing_changes_no_gradient():
    model = narrow(drop_path_rate=0.0).train()
    features = timm.create_model(SMALL, features_only=True)
    features.set_grad_checkpointing()
    assert all(stage.with_cp for stage in features.model.stages)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images(2, 3, 64, 64)).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_networks_own_options_pass_through():
    torch.manual_seed(0)
    options = dict(cluster_window=56, scales=(1, 2), crop_padding=True)
    model = timm.create_model(SMALL, features_only=True, **options).eval()
    attention = model.model.stages[0].blocks[0].attn
    assert (attention.cluster_window, attention.scales) == (56, (1, 2))
    image = images(1, 3, 64, 48)
    batch = torch.zeros(2, 3, 64, 64)
    batch[:1, :, :, :48], batch[1:] = image, images(1, 3, 64, 64)
    alone, together = model(image), model(batch)
    for one, both in zip(alone, together, strict=True):
        torch.testing.assert_close(both[:1, :, :, : one.shape[3]], one, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match='drop_path_rate'):
        timm.create_model(SMALL, drop_path_rate=1.5)
    with pytest.raises(ValueError, match=r'use \(B, 3, height, width\)'):
        model(images(1, 4, 64, 64))


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['pth', 'safetensors', 'published'])
def test_a_whole_models_file_by_checkpoint_path(net, whole, kind):
    x = images(1, 3, 64, 64)
    model = timm.create_model(SMALL, num_classes=10, checkpoint_path=whole[kind]).eval()
    assert torch.equal(model(x), net(x))
    model = timm.create_model(SMALL, num_classes=0, checkpoint_path=whole[kind]).eval()
    assert torch.equal(model.forward_features(x), net.forward_features(x))


@pytest.mark.parametrize('kind', ['pth', 'bare'])
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (0, 1)])
def test_features_by_checkpoint_path(net, whole, kind, out_indices):
    x = images(1, 3, 64, 64)
    options = dict(features_only=True, out_indices=out_indices)
    model = timm.create_model(SMALL, checkpoint_path=whole[kind], **options).eval()
    maps = net.forward_intermediates(x, indices=out_indices, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(model(x), maps, strict=True))
    again = timm.create_model(SMALL, **options)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x)[-1], maps[-1])


@pytest.mark.parametrize(
    ('options', 'kind', 'said'),
    [
        (dict(num_classes=10), 'bare', 'Missing key.*head.fc.weight'),
        (dict(num_classes=11), 'pth', 'size mismatch for head.fc.weight'),
        (dict(num_classes=10, in_chans=1), 'pth', 'size mismatch for stages.0.patch_embed'),
    ],
)
def test_checkpoint_path_is_strict(whole, options, kind, said):
    with pytest.raises(RuntimeError, match=said):
        timm.create_model(SMALL, checkpoint_path=whole[kind], **options)


def test_a_training_checkpoint_is_refused_until_it_is_published(net, whole, tmp_path):
    logging = pytest.importorskip('mmengine.logging')
    hub = logging.MessageHub.get_instance('run')
    hub.update_scalar('loss', 1.0)
    content = torch.load(whole['pth'], weights_only=True) | dict(message_hub=hub.state_dict())
    torch.save(content, tmp_path / 'epoch_1.pth')
    options = dict(num_classes=10)
    with pytest.raises(RuntimeError, match='weights_only=True blocked'):
        timm.create_model(SMALL, checkpoint_path=tmp_path / 'epoch_1.pth', **options)
    file = publish(str(tmp_path / 'epoch_1.pth'), str(tmp_path))
    model = timm.create_model(SMALL, checkpoint_path=file, **options).eval()
    assert torch.equal(model(images(1, 3, 64, 64)), net(images(1, 3, 64, 64)))


@pytest.mark.parametrize('channels', [1, 3, 5])
@pytest.mark.parametrize('features_only', [False, True])
def test_a_file_as_pretrained_weights_is_adapted(net, whole, channels, features_only):
    overlay = dict(file=str(whole['pth']), num_classes=10)
    options = dict(features_only=True) if features_only else dict(num_classes=10)
    model = timm.create_model(
        SMALL, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=channels, **options
    )
    weights = (model.model if features_only else model).state_dict()
    stem = 'stages.0.patch_embed.proj.weight'
    # the same as mmengine's init_cfg makes of them
    torch.testing.assert_close(weights[stem], adapt_stem(net.state_dict()[stem], channels))
    assert all(torch.equal(weights[k], net.state_dict()[k]) for k in weights if k != stem)


def test_pretrained_weights_with_other_classes(net, whole):
    overlay = dict(file=str(whole['pth']), num_classes=10)
    model = timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=4)
    assert model.head.fc.out_features == 4
    x = images(1, 3, 64, 64)
    assert torch.equal(model.eval().forward_features(x), net.forward_features(x))


def test_pretrained_weights_are_whole_or_none(net, whole, tmp_path):
    pvt = timm.create_model('pvt_v2_b0')
    part = {k: v for k, v in net.state_dict().items() if not k.startswith('stages.3.')}
    for wrong, lacks in ((part, 'stages.3.patch_embed.proj.weight'), (pvt.state_dict(), 'stages')):
        torch.save(wrong, tmp_path / 'wrong.pth')
        overlay = dict(file=str(tmp_path / 'wrong.pth'))
        with pytest.raises(CheckpointError, match=lacks) as error:
            timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=4)
        assert '\n' not in str(error.value)


def test_timms_pvt_v2_converted(tmp_path):
    from clustr_mm.weights import from_pvt_v2

    torch.manual_seed(0)
    teacher = timm.create_model('pvt_v2_b0', num_classes=10)
    made = from_pvt_v2(teacher.state_dict())
    save_checkpoint(made.state_dict, tmp_path / 'made.safetensors')
    path = tmp_path / 'made.safetensors'
    model = timm.create_model(f'clustr_{made.arch}', num_classes=10, checkpoint_path=path)
    for key, value in made.state_dict.items():
        assert torch.equal(model.state_dict()[key.removeprefix('backbone.')], value)


def test_a_folder_that_timm_saved(net, tmp_path):
    save_for_hf(net, tmp_path, safe_serialization=True)
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert torch.equal(model(images(1, 3, 64, 64)), net(images(1, 3, 64, 64)))
