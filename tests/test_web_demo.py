"""The web page: what it shows and refuses, and what people see in a real browser."""

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from ports import free_port
from small import NARROW, write_checkpoint
from torch import nn

from clustr_mm import ClusTR
from clustr_mm.engine import UserError
from clustr_mm.engine.pictures import image_loader

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs' / 'mmseg' / 'upernet_clustr_pvtb0_mini.py'
REAL = sorted((ROOT.parent / 'shared' / 'realdata' / 'coco' / 'val2017').glob('*.jpg'))
TOOL = runpy.run_path(str(ROOT / 'tools' / 'web_demo.py'))
CHROMIUM, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
PATIENCE = 60  # seconds, for a busy machine
# No connections of its own: all that it asks for is the page's.
FLAGS = (
    'headless',
    'no-sandbox',
    'disable-gpu',
    'disable-quic',
    'no-first-run',
    'disable-background-networking',
    'disable-component-update',
    'disable-sync',
    'disable-dev-shm-usage',
    'window-size=1280,1000',
)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentation model of random weights, as training writes it."""
    pytest.importorskip('mmseg')
    path = tmp_path_factory.mktemp('checkpoint') / 'model.pth'
    write_checkpoint(CONFIG, path)
    return path


@contextlib.contextmanager
def _server(checkpoint: Path, folder: Path, port: int) -> Iterator[tuple[str, subprocess.Popen]]:
    """The tool as people start it, until the block ends; its address."""
    command = [sys.executable, str(ROOT / 'tools' / 'web_demo.py'), 'segmentation', str(CONFIG)]
    command += [str(checkpoint), '--port', str(port), '--device', 'cpu']
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    log = folder / 'server.log'
    with log.open('w') as out:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env={
                **os.environ,
                'PYTHONPATH': os.pathsep.join(paths),
                'GRADIO_TEMP_DIR': str(folder / 'uploads'),
                'GRADIO_ANALYTICS_ENABLED': 'True',  # which the tool is to overrule
            },
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 2 * PATIENCE
        while (found := re.search(r'open (http\S+) in a browser', log.read_text())) is None:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield found[1], server
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(scope='module')
def page(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, subprocess.Popen]]:
    pytest.importorskip('gradio', reason="the extra 'web' is not installed")
    with _server(checkpoint, tmp_path_factory.mktemp('server'), free_port()) as started:
        yield started


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip('no chromium with chromedriver here: apt-get install chromium chromium-driver')
    pytest.importorskip('selenium')
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f'user-data-dir={tmp_path / "profile"}'):
        options.add_argument(f'--{flag}')
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(PATIENCE)
    try:
        yield driver
    finally:
        driver.quit()


def _wait(browser: Any, condition: Any) -> Any:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    patient = WebDriverWait(
        browser, PATIENCE, 0.1, ignored_exceptions=[StaleElementReferenceException]
    )
    return patient.until(condition)


def _upload(browser: Any, file: Path) -> None:
    """Gives the page another file, and waits until it names it."""
    for cross in browser.find_elements('css selector', '#photograph button[aria-label="Clear"]'):
        cross.click()
    chooser = _wait(
        browser, lambda b: b.find_elements('css selector', '#photograph input[type=file]')
    )
    chooser[0].send_keys(str(file))
    _wait(browser, lambda b: file.stem in b.find_element('id', 'photograph').text)


def _pictures(browser: Any) -> list[str]:
    """The addresses of the pictures that the page shows, in order; those it has not loaded, no."""
    return browser.execute_script(
        """return [...document.querySelectorAll('#prediction img, #clusters img')]
            .filter(each => each.complete && each.naturalWidth > 0 && each.naturalHeight > 0
                            && each.getBoundingClientRect().width > 100)
            .map(each => each.src);"""
    )


def _run(browser: Any) -> list[np.ndarray]:
    """Presses the button and waits for new clusters; both pictures, as the browser has them."""
    old = set(_pictures(browser))
    browser.find_element('id', 'run').click()
    # gradio names a picture by its content: an equal prediction keeps its address.
    _wait(browser, lambda b: len(new := _pictures(b)) == 2 and new[1] not in old)
    data = browser.execute_async_script(
        """const done = arguments[arguments.length - 1];
        Promise.all([...document.querySelectorAll('#prediction img, #clusters img')].map(
            each => fetch(each.src).then(reply => reply.arrayBuffer())
                .then(bytes => Array.from(new Uint8Array(bytes))))).then(done);"""
    )
    return [np.asarray(Image.open(io.BytesIO(bytes(each))).convert('RGB')) for each in data]


def _message(browser: Any) -> str:
    """Presses the button, waits for a message, reads and closes it."""
    browser.find_element('id', 'run').click()

    def shown(browser: Any) -> Any:
        # Read once: while the message moves in, its text may be empty again a moment later.
        texts = [each.text for each in browser.find_elements('css selector', '.toast-body')]
        return [each for each in texts if each]

    (text, *_) = _wait(browser, shown)
    _wait(browser, lambda b: b.find_elements('css selector', '.toast-body button'))[0].click()
    _wait(browser, lambda b: not b.find_elements('css selector', '.toast-body'))
    return text


def _photograph(folder: Path) -> Path:
    """A real one, or one with a bright disc before a dark slope."""
    if REAL:
        return REAL[0]
    y, x = np.mgrid[:240, :320]
    disc = (x - 120) ** 2 + (y - 130) ** 2 < 70**2
    pixels = np.stack([np.where(disc, 240, x // 4), np.where(disc, 200, y // 3), 90 + 0 * x], -1)
    path = folder / 'drawn.jpg'
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    """The mean difference of two pictures at a common size, of 255."""
    small = [
        np.asarray(Image.fromarray(each).resize((160, 120)), float) for each in (first, second)
    ]
    return float(np.abs(small[0] - small[1]).mean())


@pytest.mark.slow
def test_upload_run_see_both_pictures(browser: Any, page: Any, tmp_path: Path) -> None:
    address, server = page
    browser.get(address)
    _wait(browser, lambda b: b.find_elements('id', 'run'))
    assert 'Choose a file first' in _message(browser)

    photograph = _photograph(tmp_path)
    pixels = np.asarray(Image.open(photograph).convert('RGB'))
    _upload(browser, photograph)
    prediction, clusters = _run(browser)
    shape = pixels.shape[1] / pixels.shape[0]
    for picture in (prediction, clusters):
        assert picture.shape[1] / picture.shape[0] == pytest.approx(shape, rel=0.01)
        assert _distance(picture, pixels) > 8, 'nothing is drawn'
    assert _distance(prediction, clusters) > 8
    left, right = (browser.find_element('id', each).rect for each in ('prediction', 'clusters'))
    assert left['y'] == right['y'] and left['x'] + left['width'] <= right['x'], 'not side by side'
    caption = browser.find_element('id', 'clusters-caption').text
    assert re.fullmatch(
        r'Stage 1, block (\d) of \1, scale 1: \d+ clusters of \d+ x \d+ tokens', caption
    )

    # A broken file is a message, and the page goes on.
    broken, cut = tmp_path / 'broken.jpg', tmp_path / 'cut.jpg'
    broken.write_bytes(b'not what it says')
    cut.write_bytes(photograph.read_bytes()[:1500])
    for file in (broken, cut):
        _upload(browser, file)
        assert 'no image that can be read' in _message(browser)
    huge = tmp_path / 'huge.png'
    Image.new('1', (10_000, 7_000)).save(huge)
    _upload(browser, huge)
    assert 'too large: 10000 x 7000 pixels' in _message(browser)

    # Another stage, which has other blocks, of the good one again.
    _upload(browser, photograph)
    browser.find_element('css selector', '#stage input[value="3"]').click()
    browser.find_element('css selector', '#scale label:nth-of-type(2)').click()
    _wait(browser, lambda b: b.find_element('css selector', '#block input').get_property('value'))
    again, others = _run(browser)
    assert np.array_equal(again, prediction)
    assert _distance(others, clusters) > 3
    caption = browser.find_element('id', 'clusters-caption').text
    assert caption.startswith('Stage 3, block ') and 'scale 2: ' in caption

    assert server.poll() is None
    _check_requests(browser, address)


def _check_requests(browser: Any, address: str) -> None:
    """All that the browser was asked to load came from the page's own server."""
    events = [json.loads(each['message'])['message'] for each in browser.get_log('performance')]
    asked = {
        each['params']['request']['url']
        for each in events
        if each['method'] == 'Network.requestWillBeSent'
    }
    own = (address, 'data:', 'blob:', 'chrome:')
    assert any(each.startswith(address) for each in asked)
    assert not [each for each in asked if not each.startswith(own)]


def test_a_taken_port_is_said_in_one_line(checkpoint: Path) -> None:
    pytest.importorskip('gradio', reason="the extra 'web' is not installed")
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = other.getsockname()[1]
        arguments = ['segmentation', str(CONFIG), str(checkpoint), '--device', 'cpu']
        with pytest.raises(UserError, match=f'cannot listen on 127.0.0.1, port {port}: .* --port'):
            TOOL['main']([*arguments, '--port', str(port)])


def small_model(backbone: nn.Module) -> Any:
    model = nn.Module()
    model.backbone, model.data_preprocessor = backbone, None
    return model.eval()


def test_the_clusters_of_a_block_and_scale_are_drawn() -> None:
    torch.manual_seed(0)
    model = small_model(ClusTR(NARROW))
    image = np.random.RandomState(0).randint(0, 256, (60, 90, 3), np.uint8)
    picture, caption = TOOL['group'](model, image, stage=2, block=1, scale=1, side=64)
    assert picture.shape[1] / picture.shape[0] == pytest.approx(1.5, rel=0.01)
    assert caption == 'Stage 2, block 1 of 2, scale 1: 6 clusters of 8 x 12 tokens'
    finer, caption = TOOL['group'](model, image, stage=2, block=1, scale=2, side=64)
    assert caption == 'Stage 2, block 1 of 2, scale 2: 24 clusters of 8 x 12 tokens'
    assert not np.array_equal(picture, finer)
    _, caption = TOOL['group'](model, image, stage=3, block=3, scale=2, side=64)
    assert caption.endswith('scale 2: each of the 4 x 6 tokens is a cluster of its own')


def test_a_model_without_clusters_is_refused() -> None:
    demo = SimpleNamespace(model=small_model(nn.Conv2d(3, 3, 1)))
    with pytest.raises(UserError, match='no ClusTR with clusters as its backbone'):
        TOOL['make_page'](None, demo, 224, '')


def test_an_upload_is_upright_and_neither_broken_nor_too_large(tmp_path: Path) -> None:
    demo = SimpleNamespace(read=image_loader(Config()))
    image, exif = Image.new('RGB', (2000, 1000)), Image.Exif()
    exif[0x0112] = 6  # Orientation: turned by a quarter
    image.save(tmp_path / 'turned.jpg', exif=exif)
    assert TOOL['read_upload'](demo, str(tmp_path / 'turned.jpg')).shape == (1440, 720, 3)
    (tmp_path / 'broken.jpg').write_bytes(b'not what it says')
    whole = (tmp_path / 'turned.jpg').read_bytes()
    (tmp_path / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    for name in ('broken.jpg', 'cut.jpg'):
        with pytest.raises(UserError, match='^This file is no image that can be read'):
            TOOL['read_upload'](demo, str(tmp_path / name))
    for size in ((10_000, 6_401), (20_000, 20_000)):
        Image.new('1', size).save(tmp_path / 'huge.png')
        with pytest.raises(UserError, match='Give one of at most 64 million'):
            TOOL['read_upload'](demo, str(tmp_path / 'huge.png'))


def test_gradio_is_told_to_report_nothing_before_it_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv('GRADIO_ANALYTICS_ENABLED', 'True')
    monkeypatch.setitem(sys.modules, 'gradio', None)  # which makes its import fail
    with pytest.raises(UserError, match=r"pip install 'clustr-mm\[web\]'"):
        TOOL['import_gradio']()
    assert os.environ['GRADIO_ANALYTICS_ENABLED'] == 'False'


@pytest.mark.parametrize(
    ('option', 'value', 'message'),
    [
        ('--port', '99999', '--port is 99999; use 1 to 65535'),
        ('--port', '0', '--port is 0'),
        ('--side', '0', '--side is 0; use at least 1'),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_the_model_is_loaded(
    option: str, value: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        TOOL['main'](['segmentation', 'config.py', 'model.pth', option, value])
