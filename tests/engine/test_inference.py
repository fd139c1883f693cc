"""The demo: overlays for every task, of images, folders and videos."""

import re
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from small import write_checkpoint

from clustr_mm.engine import UserError
from clustr_mm.engine.inference import TASKS, Demo, plan_overlays
from clustr_mm.engine.pictures import image_loader

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    task: str(next((ROOT / 'configs' / library).glob('*_mini.py')))
    for task, library in TASKS.items()
}
TOOL = runpy.run_path(str(ROOT / 'tools' / 'demo.py'))


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """A checkpoint of random weights for a task, made when it is first asked for."""
    folder, made = tmp_path_factory.mktemp('checkpoints'), {}

    def make(task: str) -> str:
        pytest.importorskip(TASKS[task])
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


def draw(demo, source, out_dir):
    """The overlays' paths, drawn."""
    pairs = plan_overlays(str(source), str(out_dir))
    for file, overlay in pairs:
        demo.draw_file(file, overlay)
    return [str(overlay) for _, overlay in pairs]


def large(before, after):
    """An image as its overlay would be without anything drawn."""
    factor = after.shape[0] // before.shape[0]
    return before.repeat(factor, 0).repeat(factor, 1).astype(int)


@pytest.mark.parametrize('task', ['classification', 'detection', 'segmentation', 'pose'])
def test_every_task_draws_an_overlay(task, checkpoints, photo, tmp_path):
    boxes = [[5, 10, 40, 60], [60, 10, 40, 60]] if task == 'pose' else ()
    demo = Demo(task, CONFIGS[task], checkpoints(task), 'cpu', boxes, score=0.0)
    (overlay,) = draw(demo, photo, tmp_path / 'out')
    assert overlay == str(tmp_path / 'out' / 'photo.png')
    before, after = cv2.imread(str(photo)), cv2.imread(overlay)
    assert after.shape == (5 * 80, 5 * 120, 3)
    changed = np.abs(after - large(before, after))
    assert changed.max() > 60, 'nothing is drawn'
    if task in ('classification', 'pose'):  # the others cover all: the photograph's own colours
        assert np.median(changed) < 30


def test_a_prediction_is_that_of_the_librarys_inferencer_on_the_file(checkpoints, photo):
    task = 'segmentation'
    demo = Demo(task, CONFIGS[task], checkpoints(task), 'cpu')
    expected = demo.inferencer(str(photo), return_datasamples=True).pred_sem_seg.data
    assert torch.equal(demo.predict(demo.read(str(photo))).pred_sem_seg.data, expected)


def test_a_strip_is_drawn_in_proportion(checkpoints):
    task = 'segmentation'
    demo = Demo(task, CONFIGS[task], checkpoints(task), 'cpu')
    assert demo(np.zeros((16, 1600, 3), np.uint8)).shape == (3 * 16, 3 * 1600, 3)


def test_a_detection_is_drawn_alike_every_time(checkpoints, photo):
    task = 'detection'
    demo = Demo(task, CONFIGS[task], checkpoints(task), 'cpu', score=0.0)
    image, drawn = cv2.imread(str(photo)), []
    for seed in range(2):
        np.random.seed(seed)
        expected = np.random.RandomState(seed).rand()
        drawn.append(demo(image))
        assert np.random.rand() == expected, 'and drawing has no part in the chance of others'
    assert np.array_equal(*drawn)


SEG_STYLES = {
    'eight bands of 16 bits': """
_base_ = '{root}/configs/mmseg/upernet_clustr_t_mini.py'
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
    arguments = ['segmentation', str(config), str(checkpoint), str(tmp_path / image), '--clusters']
    TOOL['main']([*arguments, '--device', 'cpu', '--out-dir', str(tmp_path / 'out')])
    overlay = cv2.imread(str(tmp_path / 'out' / image)).astype(int)
    assert overlay.shape == (6 * 64, 6 * 96, 3)
    brightness = overlay.mean((1, 2))
    assert brightness[-20:].mean() > brightness[:20].mean() + 20, 'the image shines through'
    assert cv2.imread(str(tmp_path / 'out' / 'a_clusters.png')).shape[1] > 800


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
    assert demo(image).shape == (5 * 80, 5 * 120, 3)


def _persons(demo, photo):
    return demo.predict(demo.read(str(photo))).pred_instances.bboxes


def test_every_given_person_is_drawn(checkpoints, photo):
    boxes = [[60, 10, 40, 60], [70, 10, 40, 60], [60, 10, 40, 60]]  # IoU 0.6 and 1
    demo = Demo('pose', CONFIGS['pose'], checkpoints('pose'), 'cpu', boxes, score=1.0)
    seen = _persons(demo, photo)
    assert np.allclose(seen, [[60, 10, 100, 70], [70, 10, 110, 70], [60, 10, 100, 70]], atol=0.01)


def test_without_boxes_the_image_is_the_person(checkpoints, photo):
    demo = Demo('pose', CONFIGS['pose'], checkpoints('pose'), 'cpu')
    assert np.allclose(_persons(demo, photo), [[0, 0, 120, 80]], atol=0.01)


def test_the_tool_draws_the_persons_that_it_is_given(checkpoints, photo, tmp_path, capsys):
    out = tmp_path / 'out'
    place = ['--box', '60', '10', '40', '60', '--out-dir', str(out), '--device', 'cpu']
    TOOL['main'](['pose', CONFIGS['pose'], checkpoints('pose'), str(photo), *place])
    assert capsys.readouterr().out.split()[-1] == str(out / 'photo.png')
    before, after = (cv2.imread(str(path)).astype(int) for path in (photo, out / 'photo.png'))
    factor = len(after) // len(before)
    changed = np.abs(after - large(before, after)).max(2) > 60
    left, top = 60 * factor, 10 * factor
    assert changed[top - 2 : top + 3, left : left + 40 * factor].any(0).mean() > 0.9, 'its edge'


def test_a_detector_finds_the_persons(checkpoints, photo, tmp_path):
    detector = (CONFIGS['detection'], checkpoints('detection'))
    detect = Demo('detection', *detector, 'cpu').inferencer
    found = detect(str(photo), return_datasamples=True)['predictions'][0].pred_instances
    category = int(found.labels.mode().values)
    demo = Demo(
        'pose', CONFIGS['pose'], checkpoints('pose'), 'cpu', (), (*detector, category), score=0.0
    )
    assert draw(demo, photo, tmp_path / 'out')
    seen = _persons(demo, photo)
    persons = found[found.labels == category].bboxes.numpy()
    assert len(seen) > 1, 'the whole image is one'
    assert all(np.abs(persons - box).max(1).min() < 0.01 for box in seen)


def test_where_a_detector_finds_nobody_nobody_is_drawn(checkpoints, photo, tmp_path):
    pose, detector = checkpoints('pose'), (CONFIGS['detection'], checkpoints('detection'), 0)
    demo = Demo('pose', CONFIGS['pose'], pose, 'cpu', detector=detector, score=1.0)
    (overlay,) = draw(demo, photo, tmp_path / 'out')
    before, after = cv2.imread(str(photo)), cv2.imread(overlay)
    assert np.array_equal(after, large(before, after))


def test_a_class_that_the_detector_has_not_is_named(checkpoints):
    pose, detector = checkpoints('pose'), (CONFIGS['detection'], checkpoints('detection'), 99)
    with pytest.raises(UserError, match='has classes 0 to .*, and no 99'):
        Demo('pose', CONFIGS['pose'], pose, 'cpu', detector=detector)


@pytest.mark.parametrize('box', [[1, 2, 0, 4], [1, 2, 3, -4], [float('nan'), 2, 3, 4]])
def test_a_box_without_area_is_refused(box):
    with pytest.raises(UserError, match='has no area'):
        Demo('pose', CONFIGS['pose'], 'x.pth', 'cpu', [box])


def _write_video(path, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 5.0, (120, 80))
    for frame in frames:
        writer.write(frame)
    writer.release()


def test_a_folder_with_a_video(checkpoints, photo, tmp_path):
    folder = tmp_path / 'folder'
    folder.mkdir()
    photo.rename(folder / 'b.png')
    (folder / 'notes.txt').write_text('no image')
    levels = (0, 100, 200)
    _write_video(folder / 'a.avi', [np.full((80, 120, 3), each, np.uint8) for each in levels])
    task = 'classification'
    demo = Demo(task, CONFIGS[task], checkpoints(task), 'cpu')
    overlays = draw(demo, folder, tmp_path / 'out')
    assert [Path(each).name for each in overlays] == ['a.mp4', 'b.png']
    video = cv2.VideoCapture(overlays[0])
    assert video.get(cv2.CAP_PROP_FPS) == 5
    frames = []
    while (frame := video.read())[0]:
        frames.append(np.median(frame[1]))
    assert len(frames) == 3 and frames == sorted(frames) and frames[2] - frames[0] > 150


class Nothing(Demo):
    """Draws nothing, on what OpenCV reads."""

    def __init__(self):
        self.read = image_loader(Config())

    def __call__(self, image):
        return image[..., ::-1]


def test_a_video_that_ends_early_is_told(tmp_path, caplog):
    whole, cut = tmp_path / 'whole.avi', tmp_path / 'cut.avi'
    noise = np.random.default_rng(0).integers(0, 255, (10, 80, 120, 3), dtype=np.uint8)
    _write_video(whole, noise)  # much larger than its header
    draw(Nothing(), whole, tmp_path / 'out')
    assert not caplog.records
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    (overlay,) = draw(Nothing(), cut, tmp_path / 'out')
    told = re.search(r'cut.avi: (\d+) of 10 frames could be read', caplog.text)
    frames = cv2.VideoCapture(overlay).get(cv2.CAP_PROP_FRAME_COUNT)
    assert told and 0 < int(told[1]) == frames < 10


@pytest.mark.parametrize(
    ('name', 'overlay'),
    [('photo.jfif', 'photo.png'), ('photo', 'photo.png'), ('photo.JPG', 'photo.JPG')],
)
def test_an_image_of_any_name_gets_an_overlay(name, overlay, photo, tmp_path):
    file = photo.rename(tmp_path / name)
    assert draw(Nothing(), file, tmp_path / 'out') == [str(tmp_path / 'out' / overlay)]
    assert cv2.imread(str(tmp_path / 'out' / overlay)).shape == (80, 120, 3)


@pytest.mark.parametrize(
    ('names', 'source', 'message'),
    [
        (['a.jpg'], 'a.jpg', 'would replace .*a.jpg; choose another --out-dir'),
        (['a.jpg', 'b.png'], '.', 'would replace .*a.jpg'),
        (['a.avi', 'b.avi', 'b.mp4'], '.', 'would replace .*b.mp4'),
    ],
)
def test_no_overlay_replaces_what_it_is_drawn_on(names, source, message, tmp_path):
    for name in names:
        (tmp_path / name).write_text(name)
    with pytest.raises(UserError, match=message):
        plan_overlays(str(tmp_path / source), str(tmp_path))


def test_two_videos_do_not_share_an_overlay(tmp_path):
    for name in ('a.avi', 'a.mp4'):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match='a.avi and .*a.mp4 would share the overlay'):
        plan_overlays(str(tmp_path), str(tmp_path / 'out'))


@pytest.mark.parametrize('name', ['empty.jpg', 'broken.jpg', 'broken.mp4'])
def test_a_broken_file_is_named_and_nothing_is_written(name, tmp_path):
    (tmp_path / name).write_bytes(b'' if name == 'empty.jpg' else b'not what it says')
    with pytest.raises(UserError, match=f'{name} .*leave it out'):
        draw(Nothing(), tmp_path / name, tmp_path / 'out')
    assert not list((tmp_path / 'out').iterdir())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['pose', CONFIGS['detection'], 'x.pth', 'y.jpg'], 'is for detection, not for pose'),
        (['pose', CONFIGS['pose'], 'x.pth', 'y.jpg'], 'x.pth'),
        (['pose', CONFIGS['pose'], 'x.pth', 'y.jpg', '--det-config', 'c.py'], 'give both'),
        (['detection', 'c.py', 'x.pth', 'y.jpg', '--box', '1', '2', '3', '4'], 'are for pose'),
        (
            ['pose', 'c.py', 'x.pth', 'y.jpg', '--box', '1', '2', '3', '4']
            + ['--det-config', 'c.py', '--det-checkpoint', 'x.pth'],
            'leave one out',
        ),
    ],
)
def test_mistakes_are_said_in_one_line(arguments, message):
    with pytest.raises((UserError, ValueError), match=message):
        TOOL['main']([*arguments, '--device', 'cpu'])


def test_a_checkpoint_without_classes_is_named(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict={}), path)
    with pytest.raises(UserError, match='weights.pth does not name its classes'):
        Demo('classification', CONFIGS['classification'], str(path), 'cpu')


def test_a_checkpoint_of_another_model_is_named(checkpoints):
    with pytest.raises(ValueError, match='does not fit this ImageClassifier'):
        Demo('classification', CONFIGS['classification'], checkpoints('segmentation'), 'cpu')


def test_what_is_no_input_is_named(tmp_path):
    with pytest.raises(UserError, match='nowhere does not exist'):
        plan_overlays('nowhere', str(tmp_path))
    with pytest.raises(UserError, match='has no image and no video in it'):
        plan_overlays(str(tmp_path), str(tmp_path / 'out'))
