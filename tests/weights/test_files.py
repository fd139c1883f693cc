"""Weights: strict, safe, whole, in both formats, from published keys too."""

import contextlib
import os
import pickle
import random
import re
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.fileio.backends import prefix_to_backends
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import CheckpointLoader
from safetensors.torch import load_file, save_file
from torch import nn

import clustr_mm.integrations.safetensors  # noqa: F401
from clustr_mm import ClusTR
from clustr_mm.engine import run_tool
from clustr_mm.weights.files import (
    CheckpointError,
    load_pretrained,
    load_strictly,
    read_checkpoint,
    save_checkpoint,
    state_dict_of,
)
from clustr_mm.weights.published import convert_published, rename

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'


def published(arch: str = 'tiny', dtype=torch.float32) -> dict[str, torch.Tensor]:
    """Random weights under published keys, the inverse of the converter written out by hand."""
    state = {}
    for key, value in ClusTR(arch=arch).state_dict().items():
        stage, rest = re.fullmatch(r'stages\.(\d)\.(.*)', key).groups()
        s = int(stage) + 1
        if rest.startswith('patch_embed.'):
            name = f'patch_embed{s}.{rest[12:]}'
        elif rest.startswith('norm.'):
            name = f'norm{s}.{rest[5:]}'
        else:
            rest = rest[len('blocks.') :]
            rest = rest.replace('attn.kvs.0', 'attn.kv1').replace('attn.kvs.1', 'attn.kv2')
            rest = rest.replace('token_weight', 'weight_layer')
            name = f'block{s}.{rest.replace("mlp.dwconv", "mlp.dwconv.dwconv")}'
        state[name] = value.to(dtype)
    channels = state['norm4.weight'].numel()
    state['head.weight'] = torch.randn(1000, channels, dtype=dtype)
    state['head.bias'] = torch.randn(1000, dtype=dtype)
    return state


def convert(*arguments: Path) -> int:
    """Runs the tool; its exit status."""
    main = runpy.run_path(str(TOOL))['main']
    return run_tool(lambda _: main([str(argument) for argument in arguments]))


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base'])
def test_published_keys_are_matched_one_to_one(arch):
    source = published(arch)
    found, ours = convert_published(source)
    assert found == arch
    assert len(ours) == len(source)
    net = ClusTR(arch=arch)
    net.load_state_dict({k[9:]: v for k, v in ours.items() if k.startswith('backbone.')})
    assert {k for k in ours if not k.startswith('backbone.')} == {'head.fc.weight', 'head.fc.bias'}


def test_what_was_trained_in_parallel_is_converted(tmp_path):
    state = {f'module.{key}': value for key, value in published().items()}
    torch.save({'model': state}, tmp_path / 'published.pth')
    assert convert(tmp_path / 'published.pth', tmp_path / 'ours.pth') == 0


def test_rename():
    assert rename('block3.12.attn.kv2.bias') == 'stages.2.blocks.12.attn.kvs.1.bias'
    assert rename('block1.0.attn.kv3.bias') is None


@pytest.mark.parametrize(
    ('wrapper', 'suffix', 'dtype'),
    [
        (None, '.pth', torch.float32),
        ('model', '.safetensors', torch.float32),
        ('state_dict', '.pth', torch.float16),
        (None, '.safetensors', torch.float16),
    ],
)
def test_convert_then_load_everywhere(tmp_path, wrapper, suffix, dtype):
    source = published(dtype=dtype)
    torch.save({wrapper: source} if wrapper else source, tmp_path / 'published.pth')
    target = tmp_path / f'ours{suffix}'
    assert convert(tmp_path / 'published.pth', target) == 0

    # By hand, strictly.
    state = load_file(target) if suffix == '.safetensors' else torch.load(target)['state_dict']
    assert all(v.dtype == dtype for v in state.values())
    prefix = 'backbone.'
    bare = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    ClusTR(arch='tiny').load_state_dict(bare, strict=True)
    # By mmengine's init_cfg, as a detector would.
    init_cfg = dict(type='Pretrained', checkpoint=str(target), prefix=prefix)
    net = MODELS.build(dict(type='ClusTR', arch='tiny', init_cfg=init_cfg))
    net.init_weights()
    expected = source['block3.5.attn.kv2.weight'].float()
    assert torch.equal(net.stages[2].blocks[5].attn.kvs[1].weight, expected)
    # By mmengine's loader, as tools/test.py does.
    loaded = CheckpointLoader.load_checkpoint(str(target), map_location='cpu')
    assert loaded['state_dict'].keys() == state.keys()


def test_convert_lists_unmatched_keys_of_both_sides(tmp_path, capsys):
    source = published()
    source['block1.0.attn.kv3.weight'] = torch.zeros(1)
    del source['block2.1.norm1.bias']
    source['norm1.weight'] = torch.zeros(5)
    torch.save(source, tmp_path / 'published.pth')
    assert convert(tmp_path / 'published.pth', tmp_path / 'ours.pth') == 1
    out, error = capsys.readouterr()
    assert out == '' and error.count('\n') == 1
    for name in ('block1.0.attn.kv3.weight', 'stages.1.blocks.1.norm1.bias', 'norm1.weight'):
        assert name in error
    assert os.listdir(tmp_path) == ['published.pth'], 'nothing half-written'


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda p: None, 'does not exist'),
        (lambda p: p.write_bytes(b''), 'is not a checkpoint'),
        (lambda p: p.write_text('hello'), 'is not a checkpoint'),
        (lambda p: p.write_bytes(pickle.dumps(print)), 'wants to run builtins.print'),
        (lambda p: torch.save([1, 2], p), 'holds a list'),
        (lambda p: torch.save({'epoch': 3}, p), 'holds no state dict'),
    ],
)
def test_what_is_no_checkpoint_is_one_line(tmp_path, make, message, capsys):
    path = tmp_path / 'x.pth'
    make(path)
    assert convert(path, tmp_path / 'ours.pth') == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and message in error and str(path) in error


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('legacy', [False, True])
def test_a_pickle_that_runs_a_command_is_refused_and_not_run(tmp_path, legacy):
    path = tmp_path / 'evil.pth'
    content = {'state_dict': {'a': torch.zeros(1)}, 'meta': Evil(tmp_path / 'ran')}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match='mkdir'):
        read_checkpoint(path)
    assert not (tmp_path / 'ran').exists()


def test_a_training_checkpoint_of_mmengine_is_read(tmp_path):
    hub = MessageHub.get_instance('test_checkpoint')
    hub.update_scalar('train/loss', torch.tensor(1.0))
    hub.update_info('iter', 1)
    content = dict(state_dict={'a': torch.ones(2)}, message_hub=hub.state_dict(), meta=dict(iter=1))
    torch.save(content, tmp_path / 'iter_1.pth')
    read = read_checkpoint(tmp_path / 'iter_1.pth')
    assert torch.equal(read['state_dict']['a'], torch.ones(2))
    assert read['message_hub']['log_scalars']['train/loss'].current() == 1.0


def test_pretrained_matches_every_key_or_stops(tmp_path):
    net = ClusTR(arch='tiny')
    before = {k: v.clone() for k, v in net.state_dict().items()}
    path = str(tmp_path / 'x.pth')

    save_checkpoint({f'backbone.{k}': v for k, v in ClusTR(arch='base').state_dict().items()}, path)
    with pytest.raises(CheckpointError, match='does not fit this ClusTR .*shapes differ: stages'):
        load_pretrained(net, dict(checkpoint=path, prefix='backbone.'))
    with pytest.raises(CheckpointError, match="no key that begins with 'encoder.'"):
        load_pretrained(net, dict(checkpoint=path, prefix='encoder.'))
    with pytest.raises(CheckpointError, match='does not fit'):
        load_pretrained(net, dict(checkpoint=path))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()), 'nothing changed'


def test_saving_to_a_missing_folder_is_one_line_and_leaves_nothing(tmp_path):
    for name in ('x.pth', 'x.safetensors'):
        with pytest.raises(CheckpointError, match='cannot be written'):
            save_checkpoint({'a': torch.zeros(1)}, tmp_path / 'none' / name)
    assert os.listdir(tmp_path) == []


def test_state_dict_of_reads_bare_and_wrapped(tmp_path):
    save_file({'a': torch.zeros(1)}, tmp_path / 'x.safetensors')
    content = read_checkpoint(tmp_path / 'x.safetensors')
    assert list(state_dict_of(content, 'x')) == ['a']
    assert list(state_dict_of({'a': torch.zeros(1)}, 'x')) == ['a']


def small_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f'layer{i}.weight': torch.randn(4 + i, 16, generator=generator) for i in range(6)}


def equal(one, other) -> bool:
    return (
        one.keys() == other.keys()
        and all(one[key].dtype == other[key].dtype for key in one)
        and all(torch.equal(one[key], other[key]) for key in one)
    )


@pytest.fixture(params=['.pth', '.safetensors'])
def damaged(request, tmp_path):
    """A whole file's path, weights and bytes, and a path to damage."""
    path, weights = tmp_path / f'whole{request.param}', small_weights()
    save_checkpoint(weights, path, {'note': 'whole'})
    return tmp_path / f'damaged{request.param}', weights, path.read_bytes()


def test_fifty_cuts_are_refused(damaged):
    path, _, whole = damaged
    for length in random.Random(0).sample(range(len(whole)), 50):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match='is not a checkpoint that can be read') as error:
            read_checkpoint(path)
        assert '\n' not in str(error.value)


def test_flipped_bytes_are_refused_or_change_no_weight(damaged):
    path, weights, whole = damaged
    refused, chance = 0, random.Random(1)
    for position in chance.sample(range(len(whole)), 400):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        try:
            assert equal(read_checkpoint(path)['state_dict'], weights), position
        except CheckpointError as error:
            refused += 1
            assert '\n' not in str(error)
    assert refused > 100  # what is left are the zip's dates, fillings and repeated names


def test_every_value_and_name_of_safetensors_is_covered(tmp_path):
    # What a flipped byte in the header can make of a tensor: another type of the same size.
    path, weights = tmp_path / 'x.safetensors', small_weights()
    save_checkpoint(weights, path)
    whole = path.read_bytes()
    for old, new in ((b'"F32"', b'"I32"'), (b'layer3', b'layer9'), (b'[5,16]', b'[8,10]')):
        assert old in whole
        path.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(CheckpointError, match='checksum'):
            read_checkpoint(path)


def test_a_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / 'x.pth', 'w') as archive:
        archive.add(__file__)
    with pytest.raises(CheckpointError, match='tar'):
        read_checkpoint(tmp_path / 'x.pth')


def test_torch_alone_will_do(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save({'state_dict': small_weights(), 'meta': {1, 2}}, path)  # no tensors alone
    program = f"""
import sys
sys.modules['mmengine'] = sys.modules['safetensors'] = None  # as where it is not installed
from clustr_mm.weights.files import CheckpointError, read_checkpoint
print(len(read_checkpoint({str(path)!r})['state_dict']))
for source in ('s3://bucket/x.pth', {str(tmp_path / 'x.safetensors')!r}):
    try:
        read_checkpoint(source)
    except CheckpointError as error:
        print(error)
"""
    (tmp_path / 'x.safetensors').touch()
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    count, storage, safetensors = done.stdout.splitlines()
    assert count == '6'
    assert storage.startswith('s3://bucket/x.pth cannot be fetched') and 'mmengine' in storage
    assert safetensors.endswith('needs the package safetensors; pip install safetensors')


def test_trusted_on_purpose(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save({'state_dict': small_weights(), 'meta': Evil(tmp_path / 'ran')}, path)
    assert equal(read_checkpoint(path, trust=True)['state_dict'], small_weights())
    assert (tmp_path / 'ran').exists()


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_tensors_come_to_the_device_that_is_asked_for(tmp_path, suffix):
    save_checkpoint(small_weights(), tmp_path / f'x{suffix}')
    found = read_checkpoint(tmp_path / f'x{suffix}', map_location='meta')['state_dict']
    assert {value.device.type for value in found.values()} == {'meta'}


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.', ''])
def test_what_wraps_a_model_is_no_part_of_its_names(tmp_path, prefix):
    trained, fresh = nn.Linear(2, 3), nn.Linear(2, 3)
    wrapped = {f'{prefix}{key}': value for key, value in trained.state_dict().items()}
    torch.save({'state_dict': wrapped}, tmp_path / 'x.pth')
    load_pretrained(fresh, dict(checkpoint=str(tmp_path / 'x.pth')))
    assert torch.equal(fresh.weight, trained.weight)
    # A model that has a part of that name keeps it.
    outer = nn.ModuleDict({'module': nn.Linear(2, 3)})
    load_strictly(outer, {f'module.{key}': value for key, value in trained.state_dict().items()})
    assert torch.equal(outer['module'].weight, trained.weight)


def test_a_prefix_chooses_and_what_is_more_is_listed(tmp_path):
    trained, fresh = nn.Linear(2, 3), nn.Linear(2, 3)
    state = {f'net.{key}': value for key, value in trained.state_dict().items()}
    state |= {'head.weight': torch.ones(1), 'net.scale': torch.ones(1)}
    assert load_strictly(fresh, state, 'net') == ['scale']
    assert torch.equal(fresh.weight, trained.weight)
    save_checkpoint(state, tmp_path / 'x.pth')
    with pytest.warns(UserWarning, match='x.pth has 1 keys that this Linear does not have: scale'):
        load_pretrained(fresh, dict(checkpoint=tmp_path / 'x.pth', prefix='net.'))
    with pytest.raises(CheckpointError, match='1 keys missing: bias; 1 keys unexpected: scale'):
        load_strictly(fresh, {k: v for k, v in state.items() if k != 'net.bias'}, 'net')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_weights_without_values_are_neither_written_nor_loaded(tmp_path, suffix):
    meta, real = nn.Linear(2, 3, device='meta'), nn.Linear(2, 3)
    with pytest.raises(CheckpointError, match='2 tensors without values, on the meta device'):
        save_checkpoint(meta.state_dict(), tmp_path / f'x{suffix}')
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match='2 tensors without values'):
        load_strictly(real, meta.state_dict())
    with pytest.raises(CheckpointError, match='on the meta device, where to_empty'):
        load_strictly(meta, real.state_dict())


def test_addresses_are_read_as_files_are(tmp_path, server):
    served = tmp_path / 'served'
    save_checkpoint(small_weights(), served / 'x.pth')
    address = f'{server}/x.pth'
    assert equal(read_checkpoint(address)['state_dict'], small_weights())
    (served / 'x.pth').unlink()
    assert equal(read_checkpoint(address)['state_dict'], small_weights()), 'kept'

    for wrong in (f'{server}/none.pth', 'http://localhost:port/x.pth', 'http://'):
        with pytest.raises(CheckpointError, match=f'{wrong} cannot be fetched'):
            read_checkpoint(wrong)
    torch.save({'state_dict': Evil(tmp_path / 'ran')}, served / 'evil.pth')
    net = ClusTR(arch='tiny')
    with pytest.raises(CheckpointError, match='mkdir'):
        load_pretrained(net, dict(checkpoint=f'{server}/evil.pth'))
    assert not (tmp_path / 'ran').exists()


def test_storages_that_mmengine_knows_are_read_as_files_are(tmp_path, monkeypatch):
    class Bucket(LocalBackend):
        """A storage whose files get another name here, as a client of S3 gives them."""

        @contextlib.contextmanager
        def get_local_path(self, filepath):
            name = tmp_path / 'fetched'
            name.write_bytes((tmp_path / filepath.rpartition('/')[2]).read_bytes())
            yield str(name)
            name.unlink()

    monkeypatch.setitem(prefix_to_backends, 'bucket', Bucket)
    for suffix in ('.pth', '.safetensors'):
        save_checkpoint(small_weights(), tmp_path / f'x{suffix}')
        found = read_checkpoint(f'bucket://models/x{suffix}')['state_dict']
        assert equal(found, small_weights())
    torch.save({'state_dict': Evil(tmp_path / 'ran')}, tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match='bucket://models/evil.pth is a pickle that wants'):
        read_checkpoint('bucket://models/evil.pth')
    assert not (tmp_path / 'ran').exists()
    for source in ('bucket://models/none.pth', 'nowhere://x.pth'):
        with pytest.raises(CheckpointError, match=f'{source} cannot be fetched') as error:
            read_checkpoint(source)
        assert '\n' not in str(error.value)


def test_a_download_cut_short_is_fetched_again(tmp_path, server):
    path = tmp_path / 'served' / 'x.pth'
    save_checkpoint(small_weights(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match='not a checkpoint'):
        read_checkpoint(f'{server}/x.pth')
    path.write_bytes(whole)
    assert equal(read_checkpoint(f'{server}/x.pth')['state_dict'], small_weights())


class Versioned(nn.Module):
    """Renames what its first version called otherwise, as heads of mmpose do."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.new = nn.Parameter(torch.zeros(2))

    def _load_from_state_dict(self, state_dict, prefix, metadata, *args):
        if metadata.get('version') is None or metadata['version'] < 2:
            state_dict[f'{prefix}new'] = -state_dict.pop(f'{prefix}old')
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)


@pytest.mark.parametrize('wrapper', ['', 'module.'])
def test_modules_know_the_version_of_a_checkpoint(tmp_path, wrapper):
    source = nn.Sequential(Versioned())
    source[0].new.data.fill_(3)
    saved = nn.ModuleDict(dict(module=source)) if wrapper else source
    torch.save(dict(state_dict=saved.state_dict()), tmp_path / 'x.pth')
    target = nn.Sequential(Versioned())
    load_strictly(target, state_dict_of(read_checkpoint(tmp_path / 'x.pth')))
    assert target[0].new.tolist() == [3, 3]
    # And converts an old one, which names and shapes alone would refuse.
    assert load_strictly(target, {'0.old': torch.ones(2)}) == []
    assert target[0].new.tolist() == [-1, -1]
