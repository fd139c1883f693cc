"""The layouts: what their readers read is what the scenes hold."""

import json

import cv2
import numpy as np
import pytest

from clustr_mm.datasets.mini import MiniData, build
from clustr_mm.datasets.mini.figures import FACE, LEFT_HAND
from clustr_mm.datasets.mini.mini import rle
from clustr_mm.datasets.mini.scenes import make_scene
from clustr_mm.datasets.mini.spec import BY_NAME, CLASSES, COCO_CATEGORIES, IMAGENET_NAMES

SIZE = (96, 128)
DATA = MiniData('all', train=20, val=12, size=SIZE, seed=5)


@pytest.fixture(scope='module')
def roots(tmp_path_factory):
    return build(tmp_path_factory.mktemp('data') / 'mini', DATA)


@pytest.fixture(scope='module')
def val_scenes():
    return [make_scene(5, 'val', i, SIZE) for i in range(12)]


def test_ade_labels_are_the_scenes(roots, val_scenes):
    root = roots['ade20k']
    assert root.name == 'ADEChallengeData2016'
    ids = np.array([0, *(c.ade_id for c in CLASSES)])
    for split, count in (('training', 20), ('validation', 12)):
        images = sorted(p.stem for p in (root / 'images' / split).glob('*.jpg'))
        labels = sorted(p.stem for p in (root / 'annotations' / split).glob('*.png'))
        assert images == labels and len(images) == count
    for i, scene in enumerate(val_scenes):
        name = f'ADE_val_{i + 1:08d}'
        label = cv2.imread(
            str(root / 'annotations/validation' / f'{name}.png'), cv2.IMREAD_UNCHANGED
        )
        assert label.dtype == np.uint8 and (label == ids[scene.semantic]).all()
        image = cv2.imread(str(root / 'images/validation' / f'{name}.jpg'))[..., ::-1]
        assert np.abs(image.astype(int) - scene.image).mean() < 12  # jpeg


def test_ade_ids_are_ade20ks():
    mmseg = pytest.importorskip('mmseg.datasets')
    names = mmseg.ADE20KDataset.METAINFO['classes']
    for c in CLASSES:
        assert names[c.ade_id - 1].strip() == c.name


def test_coco_ids_are_cocos():
    mmdet = pytest.importorskip('mmdet.datasets')
    assert tuple(c['name'] for c in COCO_CATEGORIES) == mmdet.CocoDataset.METAINFO['classes']
    assert [c['id'] for c in COCO_CATEGORIES][-1] == 90
    names = {c['id']: c['name'] for c in COCO_CATEGORIES}
    for c in CLASSES:
        if c.coco_id:
            assert names[c.coco_id] in (c.name, f'sports {c.name}')


def test_coco_masks_are_the_scenes(roots, val_scenes):
    coco_module = pytest.importorskip('pycocotools.coco')
    coco = coco_module.COCO(str(roots['coco'] / 'annotations/instances_val2017.json'))
    assert sorted(coco.getImgIds()) == list(range(1, 13)) and len(coco.getCatIds()) == 80
    for i, scene in enumerate(val_scenes):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[i + 1]))
        assert len(annotations) == len(scene.instances)
        assert (roots['coco'] / 'val2017' / coco.imgs[i + 1]['file_name']).is_file()
        for annotation, instance in zip(annotations, scene.instances, strict=True):
            assert (coco.annToMask(annotation) == instance.mask).all()
            assert annotation['area'] == instance.mask.sum() and annotation['iscrowd'] == 0
            assert tuple(annotation['bbox']) == instance.box
            assert annotation['category_id'] == BY_NAME[instance.name].coco_id


def test_rle_of_edge_cases():
    mask_module = pytest.importorskip('pycocotools.mask')
    for mask in (np.zeros((3, 4), bool), np.ones((3, 4), bool), np.eye(4, dtype=bool)):
        code = rle(mask)
        assert sum(code['counts']) == mask.size
        packed = mask_module.frPyObjects(code, *code['size'])
        assert (mask_module.decode(packed) == mask).all()


def test_truth_scores_full_marks_in_coco(roots):
    """The real evaluator finds the truth perfect: boxes and masks agree with each other."""
    coco_module = pytest.importorskip('pycocotools.coco')
    from pycocotools.cocoeval import COCOeval

    truth = coco_module.COCO(str(roots['coco'] / 'annotations/instances_val2017.json'))
    found = [
        dict(
            image_id=a['image_id'],
            category_id=a['category_id'],
            score=1.0,
            bbox=a['bbox'],
            segmentation=truth.annToRLE(a),
        )
        for a in truth.dataset['annotations']
    ]
    for kind in ('bbox', 'segm'):
        evaluation = COCOeval(truth, truth.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0)


def test_wholebody_fields_are_the_public_ones(roots, val_scenes):
    content = json.loads(
        (roots['coco_wholebody'] / 'annotations/coco_wholebody_val_v1.0.json').read_text()
    )
    # The fields of a COCO-WholeBody V1.0 annotation.
    fields = set(
        'segmentation num_keypoints area iscrowd keypoints image_id bbox category_id id face_box '
        'lefthand_box righthand_box lefthand_kpts righthand_kpts face_kpts face_valid '
        'lefthand_valid righthand_valid foot_valid foot_kpts'.split()
    )
    persons = [(i, p) for i, s in enumerate(val_scenes) for p in s.instances if p.name == 'person']
    assert len(content['annotations']) == len(persons) > 0
    assert len(content['images']) == 12 and len(content['categories'][0]['keypoints']) == 17
    valid = 0
    for annotation, (i, person) in zip(content['annotations'], persons, strict=True):
        assert set(annotation) == fields and annotation['image_id'] == i + 1
        lengths = [len(annotation[k]) for k in ('keypoints', 'foot_kpts', 'face_kpts')]
        assert lengths == [51, 18, 204]
        assert len(annotation['lefthand_kpts']) == len(annotation['righthand_kpts']) == 63
        body = np.array(annotation['keypoints']).reshape(-1, 3)
        assert annotation['num_keypoints'] == (body[:, 2] > 0).sum()
        for key, part in (('face', FACE), ('lefthand', LEFT_HAND)):
            points = np.array(annotation[f'{key}_kpts']).reshape(-1, 3)
            x, y, w, h = annotation[f'{key}_box']
            if not annotation[f'{key}_valid']:
                assert (points == 0).all() and (x, y, w, h) == (0, 0, 0, 0)
                continue
            valid += 1
            assert np.allclose(points, person.keypoints[part], atol=0.006)
            seen = points[points[:, 2] > 0]
            assert (seen[:, 0] >= x - 0.51).all() and (seen[:, 0] <= x + w + 0.51).all()
            assert (seen[:, 1] >= y - 0.51).all() and (seen[:, 1] <= y + h + 0.51).all()
    assert valid > 5


def test_imagenet_has_the_same_folders_in_both_splits(roots):
    root = roots['imagenet']
    folders = {
        split: sorted(p.name for p in (root / split).iterdir()) for split in ('train', 'val')
    }
    assert folders['train'] == folders['val']
    # Label i is the i-th folder, and the i-th of IMAGENET_NAMES.
    assert folders['train'] == [BY_NAME[name].wnid for name in IMAGENET_NAMES]
    assert len(list((root / 'train').glob('*/*.JPEG'))) == 20
    for wnid in folders['val']:
        files = list((root / 'val' / wnid).iterdir())
        assert len(files) in (1, 2)  # 12 pictures of 10 classes
        assert cv2.imread(str(files[0])).shape == (*SIZE, 3)


def test_task_libraries_read_the_layouts(roots):
    """The unchanged data set classes of all four libraries."""
    mmseg = pytest.importorskip('mmseg.datasets')
    mmdet = pytest.importorskip('mmdet.datasets')
    mmpose = pytest.importorskip('mmpose.datasets')
    mmpretrain = pytest.importorskip('mmpretrain.datasets')
    ade = mmseg.ADE20KDataset(
        data_root=str(roots['ade20k']),
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=[],
    )
    assert len(ade) == 12
    coco = mmdet.CocoDataset(
        data_root=str(roots['coco']),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        pipeline=[],
    )
    assert len(coco) == 20 and sum(len(coco[i]['instances']) for i in range(20)) > 20
    pose = mmpose.CocoWholeBodyDataset(
        data_root=str(roots['coco_wholebody']),
        ann_file='annotations/coco_wholebody_train_v1.0.json',
        data_prefix=dict(img='train2017/'),
        pipeline=[],
    )
    assert len(pose) > 5 and pose[0]['keypoints'].shape == (1, 133, 2)
    folders = mmpretrain.CustomDataset(data_root=str(roots['imagenet']), data_prefix='train')
    assert len(folders) == 20 and len(folders.CLASSES) == 10
