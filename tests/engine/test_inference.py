"""The demo: overlays for every task, of images, folders and videos."""

import runpy
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from small import write_checkpoint

from clustr_mm.engine import UserError
from clustr_mm.engine.inference import TASKS, Demo

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    task: str(next((ROOT / 'configs' / library).glob('*_mini.py')))
    for task, (library, _, _) in TASKS.items()
}
TOOL = runpy.run_path(str(ROOT / 'tools' / 'demo.py'))


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """A checkpoint of random weights for a task, made when it is first asked for."""
    folder, made = tmp_path_factory.mktemp('checkpoints'), {}

    def make(task: str) -> str:
        pytest.importorskip(TASKS[task][0])
        if task not in made:
            made[task] = str(folder / f'{task}.pth')
            write_checkpoint(CONFIGS[task], made[task])
        return made[task]

    return make


@pytest.fixture(autouse=True)
def same_log_level():
    """The tool quietens the log, of the whole process."""
    logger = MMLogger.get_current_instance()
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture
def photo(tmp_path):
    """A photograph with a red and a blue half."""
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[:, :60, 2], pixels[:, 60:, 0] = 200, 200  # BGR
    path = tmp_path / 'photo.png'
    cv2.imwrite(str(path), pixels)
    return path


def draw(task, checkpoint, source, out_dir, *options):
    """Runs the tool."""
    arguments = [task, CONFIGS[task], checkpoint, str(source), '--out-dir', str(out_dir)]
    TOOL['main']([*arguments, '--device', 'cpu', *options])


@pytest.mark.parametrize('task', ['classification', 'detection', 'segmentation', 'pose'])
def test_every_task_draws_an_overlay(task, checkpoints, photo, tmp_path, capsys):
    draw(task, checkpoints(task), photo, tmp_path / 'out', '--score', '0')
    assert capsys.readouterr().out.split()[-1] == str(tmp_path / 'out' / 'photo.png')
    before = cv2.imread(str(photo))
    if task == 'classification':  # small pictures are enlarged until a class's name can be read
        before = cv2.resize(before, (360, 240), interpolation=cv2.INTER_NEAREST)
    before = before.astype(int)
    after = cv2.imread(str(tmp_path / 'out' / 'photo.png')).astype(int)
    assert after.shape == before.shape
    assert np.abs(after - before).max() > 60, 'nothing is drawn'
    if task in ('classification', 'pose'):  # the others cover all: the photograph's own colours
        assert np.median(np.abs(after - before)) < 30


def test_a_prediction_is_that_of_the_librarys_inferencer_on_the_file(checkpoints, photo):
    task = 'segmentation'
    demo = Demo(task, CONFIGS[task], checkpoints(task), 'cpu')
    expected = demo.inferencer(str(photo), return_datasamples=True).pred_sem_seg.data
    assert torch.equal(demo.predict(demo.read(str(photo))).pred_sem_seg.data, expected)


SEG_STYLES = {
    'eight bands of 16 bits': """
_base_ = '{root}/configs/mmseg/upernet_clustr_pvtb0_mini.py'
load = dict(type='LoadImageFromFile', imdecode_backend='tifffile', color_type='unchanged')
test_dataloader = dict(dataset=dict(pipeline=[load, dict(type='PackSegInputs')]))
model = dict(backbone=dict(in_channels=8), data_preprocessor=dict(
    _delete_=True, type='SegDataPreProcessor', size=(96, 96), seg_pad_val=255))
""",
    'classes for types, no visualizer': """
from mmengine.config import read_base
from mmcv.transforms import LoadImageFromFile
from mmseg.datasets import BaseSegDataset, LoadAnnotations, PackSegInputs
from mmseg.models import CrossEntropyLoss, EncoderDecoder, FCNHead, SegDataPreProcessor
from torch.nn import BatchNorm2d
from clustr_mm import ClusTR
default_scope = 'mmseg'
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(type=SegDataPreProcessor, bgr_to_rgb=True, size=(64, 64)),
    backbone=dict(type=ClusTR, arch='tiny'),
    decode_head=dict(type=FCNHead, in_channels=512, channels=8, num_convs=1, num_classes=2,
                     norm_cfg=dict(type=BatchNorm2d), loss_decode=dict(type=CrossEntropyLoss)),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
metainfo = dict(classes=('a', 'b'), palette=[[200, 0, 0], [0, 200, 0]])
pipeline = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations), dict(type=PackSegInputs)]
test_dataloader = dict(dataset=dict(type=BaseSegDataset, metainfo=metainfo, pipeline=pipeline))
""",
}


@pytest.mark.parametrize('style', SEG_STYLES)
def test_what_a_config_loads_and_how_it_is_written_is_its_own(style, tmp_path):
    pytest.importorskip('mmseg')
    tifffile = pytest.importorskip('tifffile')
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'model.pth'
    config.write_text(SEG_STYLES[style].format(root=ROOT))
    write_checkpoint(config, checkpoint)
    ramp = np.linspace(1000, 9000, 64 * 96).reshape(64, 96, 1).repeat(8, 2)
    if '16 bits' in style:
        tifffile.imwrite(tmp_path / 'a.tif', ramp.astype(np.uint16), planarconfig='contig')
        image = 'a.tif'
    else:
        cv2.imwrite(str(tmp_path / 'a.png'), (ramp[..., :3] / 40).astype(np.uint8))
        image = 'a.png'
    arguments = ['segmentation', str(config), str(checkpoint), str(tmp_path / image)]
    TOOL['main']([*arguments, '--device', 'cpu', '--out-dir', str(tmp_path / 'out')])
    overlay = cv2.imread(str(tmp_path / 'out' / image)).astype(int)
    assert overlay.shape == (64, 96, 3)
    brightness = overlay.mean((1, 2))
    assert brightness[-4:].mean() > brightness[:4].mean() + 20, 'the image shines through'


def test_mmposes_own_inferencer_takes_our_config(checkpoints, photo):
    apis = pytest.importorskip('mmpose.apis')
    weights = checkpoints('pose')
    inferencer = apis.MMPoseInferencer(CONFIGS['pose'], weights, det_model='whole_image')
    (persons,) = next(inferencer(str(photo)))['predictions']
    assert len(persons) == 1 and len(persons[0]['keypoints']) == 133


BOTTOM_UP = """
_base_ = 'mmpose::body_2d_keypoint/yoloxpose/coco/yoloxpose_tiny_4xb64-300e_coco-416.py'
custom_imports = dict(imports=['clustr_mm'])
model = dict(
    backbone=dict(_delete_=True, type='ClusTR', arch='tiny', out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512]),
)
"""


def test_a_bottom_up_model_finds_its_persons_itself(photo, tmp_path):
    pytest.importorskip('mmpose')
    config, checkpoint = tmp_path / 'bottom_up.py', tmp_path / 'model.pth'
    config.write_text(BOTTOM_UP)
    write_checkpoint(config, checkpoint)
    demo = Demo('pose', str(config), str(checkpoint), 'cpu', score=0.0)
    image = demo.read(str(photo))
    assert len(demo.predict(image).pred_instances) > 1
    assert demo(image).shape == (80, 120, 3)


def _persons(demo, photo):
    return demo.predict(demo.read(str(photo))).pred_instances.bboxes


def test_a_detector_finds_the_persons(checkpoints, photo):
    detector = (CONFIGS['detection'], checkpoints('detection'))
    detect = Demo('detection', *detector, 'cpu').inferencer
    found = detect(str(photo), return_datasamples=True)['predictions'][0].pred_instances
    category = int(found.labels.mode().values)
    pose = CONFIGS['pose'], checkpoints('pose')
    demo = Demo('pose', *pose, 'cpu', (*detector, category), score=0.0)
    seen = _persons(demo, photo)
    persons = found[found.labels == category].bboxes.numpy()
    assert len(seen) > 1, 'the whole image is one'
    assert all(np.abs(persons - box).max(1).min() < 0.01 for box in seen)


def test_where_nobody_is_found_the_image_is_the_person(checkpoints, photo):
    pose = CONFIGS['pose'], checkpoints('pose')
    detector = (CONFIGS['detection'], checkpoints('detection'), 0)
    for demo in (Demo('pose', *pose, 'cpu'), Demo('pose', *pose, 'cpu', detector, score=1.0)):
        assert np.allclose(_persons(demo, photo), [[0, 0, 120, 80]], atol=0.01)


def test_a_class_that_the_detector_has_not_is_named(checkpoints):
    pose, detector = checkpoints('pose'), (CONFIGS['detection'], checkpoints('detection'), 99)
    with pytest.raises(UserError, match='has classes 0 to .*, and no 99'):
        Demo('pose', CONFIGS['pose'], pose, 'cpu', detector)


def _write_video(path, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 5.0, (120, 80))
    for frame in frames:
        writer.write(frame)
    writer.release()


def test_a_video_of_poses(checkpoints, photo, tmp_path):
    levels = (0, 100, 200)
    video = tmp_path / 'a.avi'
    _write_video(video, [np.full((80, 120, 3), each, np.uint8) for each in levels])
    draw('pose', checkpoints('pose'), video, tmp_path / 'out')
    drawn = cv2.VideoCapture(str(tmp_path / 'out' / 'a.avi'))
    assert drawn.get(cv2.CAP_PROP_FPS) == 5
    frames = []
    while (frame := drawn.read())[0]:
        frames.append(np.median(frame[1]))
    assert len(frames) == 3 and frames == sorted(frames) and frames[2] - frames[0] > 150
    with pytest.raises(UserError, match='a.avi is a video, which only pose takes'):
        draw('segmentation', checkpoints('segmentation'), video, tmp_path / 'out')
    video.write_bytes(b'not what it says')
    with pytest.raises(UserError, match='a.avi has no frame that can be read'):
        draw('pose', checkpoints('pose'), video, tmp_path / 'out')


def test_images_of_a_folder_and_of_any_name(checkpoints, photo, tmp_path, capsys):
    folder = tmp_path / 'folder'
    folder.mkdir()
    shutil.copy(photo, folder / 'a.JPG')
    shutil.copy(photo, folder / 'b.png')
    (folder / 'notes.txt').write_text('no image')
    task = 'classification'
    for source in (folder, shutil.copy(photo, tmp_path / 'photo.jfif')):
        draw(task, checkpoints(task), source, tmp_path / 'out')
    names = [Path(line).name for line in capsys.readouterr().out.split()]
    assert names == ['a.JPG', 'b.png', 'photo.png']
    assert all(cv2.imread(str(tmp_path / 'out' / name)).shape == (240, 360, 3) for name in names)


def test_no_overlay_replaces_what_it_is_drawn_on(checkpoints, photo):
    before = photo.read_bytes()
    for source in (photo, photo.parent):
        with pytest.raises(UserError, match='would replace the files in .*choose another'):
            draw('classification', 'x.pth', source, photo.parent)
    assert photo.read_bytes() == before


@pytest.mark.parametrize('name', ['empty.jpg', 'broken.jpg'])
def test_a_broken_file_is_named_and_nothing_is_written(name, checkpoints, tmp_path):
    (tmp_path / name).write_bytes(b'' if name == 'empty.jpg' else b'not what it says')
    task = 'classification'
    with pytest.raises(UserError, match=f'{name} .*leave it out'):
        draw(task, checkpoints(task), tmp_path / name, tmp_path / 'out')
    assert not list((tmp_path / 'out').iterdir())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['pose', CONFIGS['detection'], 'x.pth'], 'is for detection, not for pose'),
        (['pose', CONFIGS['pose'], 'x.pth'], 'x.pth'),
        (['pose', CONFIGS['pose'], 'x.pth', '--det-config', 'c.py'], 'give both'),
        (
            ['detection', 'c.py', 'x.pth', '--det-config', 'c.py', '--det-checkpoint', 'x.pth'],
            'is for pose, not for detection',
        ),
    ],
)
def test_mistakes_are_said_in_one_line(arguments, message, photo):
    with pytest.raises((UserError, ValueError), match=message):
        TOOL['main']([*arguments[:3], str(photo), '--device', 'cpu', *arguments[3:]])


def test_a_checkpoint_without_classes_is_named(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict={}), path)
    with pytest.raises(UserError, match='weights.pth does not name its classes'):
        Demo('classification', CONFIGS['classification'], str(path), 'cpu')


def test_a_checkpoint_of_another_model_is_named(checkpoints):
    with pytest.raises(ValueError, match='does not fit this ImageClassifier'):
        Demo('classification', CONFIGS['classification'], checkpoints('segmentation'), 'cpu')


@pytest.mark.parametrize('name', ['nowhere', 'empty'])
def test_what_is_no_input_is_named(name, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=f'{name}: no such image, or a folder without any'):
        draw('classification', 'x.pth', tmp_path / name, tmp_path / 'out')
