"""A sample that cannot be loaded: its damaged file is named, and a bug is not called one."""

import cv2
import numpy as np
import pytest

pytest.importorskip('mmseg')
import tifffile
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.dataset_wrappers import MultiImageMixDataset

from clustr_mm.datasets import failed_sample, sample_fault

LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]


def make(root, suffix='.png', pipeline=(), load=LOAD):
    """Two 8 x 8 images with label maps."""
    init_default_scope('mmseg')
    for folder in ('images', 'labels'):
        (root / folder).mkdir(parents=True)
    for i in range(2):
        image = np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)
        cv2.imwrite(str(root / 'images' / f'{i}{suffix}'), image)
        cv2.imwrite(str(root / 'labels' / f'{i}.png'), image[..., 0] % 2)
    return BaseSegDataset(
        data_root=str(root),
        img_suffix=suffix,
        metainfo=dict(classes=('a', 'b')),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        pipeline=[*load, *pipeline],
    )


def spoilt(path, how):
    """Damages a file."""
    if how == 'missing':
        path.unlink()
    elif how == 'folder':
        path.unlink()
        path.mkdir()
    elif how == 'size':
        cv2.imwrite(str(path), np.zeros((4, 9), np.uint8))
    else:
        data = path.read_bytes()
        made = {'empty': b'', 'cut': data[: len(data) // 2], 'text': b'<html>404</html>'}
        path.write_bytes(made[how])


@pytest.mark.parametrize('folder', ['images', 'labels'])
@pytest.mark.parametrize(
    ('how', 'words'),
    [
        ('missing', 'No such file'),
        ('folder', 'Is a directory'),
        ('empty', 'is empty'),
        ('cut', 'truncated or corrupt'),
        ('text', 'is not an image'),
        ('size', 'must have one size'),
    ],
)
@pytest.mark.parametrize('load', [LOAD, LOAD[::-1]], ids=['image first', 'labels first'])
def test_damaged_file_is_named(tmp_path, folder, how, words, load):
    dataset = make(tmp_path, load=load)
    path = tmp_path / folder / '1.png'
    spoilt(path, how)
    fault = sample_fault(dataset, 1)
    assert str(path) in fault and words in fault and '\n' not in fault
    assert sample_fault(dataset, 0) is None


def test_cut_jpeg_is_named(tmp_path):
    dataset = make(tmp_path, '.jpg')
    path = tmp_path / 'images' / '1.jpg'
    spoilt(path, 'cut')
    assert f'{path} is truncated or corrupt' in sample_fault(dataset, 1)


def test_file_that_no_step_loads_is_not_looked_at(tmp_path):
    dataset = make(tmp_path, load=LOAD[:1])
    (tmp_path / 'labels' / '0.png').unlink()
    assert sample_fault(dataset, 0) is None


def broken_step(results):
    """A transform with a bug."""
    raise RuntimeError('a bug')


def test_bug_is_not_the_files_fault(tmp_path):
    dataset = make(tmp_path, pipeline=[broken_step])
    with pytest.raises(RuntimeError):
        dataset[0]
    assert sample_fault(dataset, 0) is None
    assert sample_fault([1, 2], 0) is None  # a foreign data set


def test_format_that_only_its_loader_knows(tmp_path):
    load = [dict(LOAD[0], imdecode_backend='tifffile', color_type='unchanged'), LOAD[1]]
    dataset = make(tmp_path, '.tif', load=load)
    path = tmp_path / 'images' / '0.tif'
    tifffile.imwrite(path, np.zeros((8, 8, 8), np.uint16), photometric='minisblack')
    assert sample_fault(dataset, 0) is None
    path.write_bytes(path.read_bytes()[:4])
    assert str(path) in sample_fault(dataset, 0)


class Asks:
    """A transform that mixes in the first sample, as mosaics do some."""

    def get_indices(self, dataset):
        return 0

    def __call__(self, results):
        return results


def test_sample_that_failed_is_found_through_wrappers(tmp_path):
    first, second = make(tmp_path / 'a'), make(tmp_path / 'b')
    path = tmp_path / 'b' / 'images' / '0.png'
    path.write_bytes(b'')
    both = ConcatDataset([first, second])
    mixed = MultiImageMixDataset(ConcatDataset([second]), [])
    mixed.pipeline, mixed.pipeline_types = [Asks()], ['Asks']
    for dataset, index in ((both, 2), (RepeatDataset(second, 2), 2), (mixed, 1)):
        with pytest.raises(Exception) as error:
            dataset[index]
        assert str(path) in sample_fault(*failed_sample(error.value))
    assert failed_sample(ValueError()) is None
