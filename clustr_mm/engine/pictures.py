"""Images as the config reads them, also where the libraries' drawing hooks cannot."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS, DefaultScope
from PIL import Image

from clustr_mm.datasets.check import type_name
from clustr_mm.datasets.pixels import as_photo, rgb_or_bands
from clustr_mm.engine.errors import UserError


@contextlib.contextmanager
def in_library(name: str | None) -> Iterator[None]:
    """Builds a library's parts by their names, without what it prints about itself."""
    scope = DefaultScope.overwrite_default_scope(name)
    with scope, contextlib.redirect_stdout(io.StringIO()):
        yield


def _loading_step(cfg: Config) -> Any:
    """The config of the first step of the test pipeline that loads an image; else mmcv's own."""
    steps = (cfg.get('test_dataloader') or {}).get('dataset', {}).get('pipeline') or []
    loading = (each for each in steps if type_name(each['type']).startswith('LoadImage'))
    return next(loading, dict(type='LoadImageFromFile'))


def image_loader(cfg: Config) -> Callable[[str], np.ndarray]:
    """The reading of a config's test pipeline: of a file (H, W, C), BGR where C is 3."""
    with in_library(cfg.get('default_scope')):
        load = TRANSFORMS.build(_loading_step(cfg))

    def read(path: str) -> np.ndarray:
        try:
            return load(dict(img_path=path))['img']
        except Exception as error:  # each decoder has its own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f'{path} is no image that can be read ({reason}); leave it out') from (
                error
            )

    return read


@HOOKS.register_module()
class ReadableImageHook(Hook):
    """Lets the libraries' drawing hooks show images of many bands or other values than 0 to 255.

    They read an image's file anew, by OpenCV, as RGB. Where the config's own step reads more, they
    are given a copy that looks as :func:`clustr_mm.datasets.pixels.as_photo` says; the metrics have
    had the prediction by then.
    """

    priority = 'ABOVE_NORMAL'  # before they draw

    def __init__(self) -> None:
        self.load: Callable[[str], np.ndarray] | None = None

    def before_run(self, runner: Any) -> None:
        """Finds out whether images are drawn, and read by more than OpenCV."""
        step = _loading_step(runner.cfg)
        plain = (
            type_name(step['type']) in ('LoadImage', 'LoadImageFromFile')
            and step.get('imdecode_backend') in (None, 'cv2', 'pillow', 'turbojpeg')
            and step.get('color_type') != 'unchanged'
        )
        # As mmdet's and mmseg's hooks, and mmpose's and mmpretrain's, name what --show-dir sets.
        drawn = any(getattr(h, name, False) for h in runner.hooks for name in ('draw', 'enable'))
        self.load = image_loader(runner.cfg) if drawn and not plain else None
        self.folder = tempfile.TemporaryDirectory()

    def after_run(self, runner: Any) -> None:
        """Removes the copies."""
        self.folder.cleanup()

    def _after_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None,
        mode: str = 'train',
    ) -> None:  # fmt: skip
        if self.load is None or mode == 'train':
            return
        # mmpose's hook looks at the batch, the others at the outputs.
        for place, sample in enumerate([*outputs, *data_batch['data_samples']]):
            path = sample.get('img_path')
            if path is None or path.startswith(self.folder.name):  # one sample in both lists
                continue
            copy = Path(self.folder.name, str(place), os.path.basename(path))
            copy.parent.mkdir(exist_ok=True)
            photo = as_photo(rgb_or_bands(self.load(path)))
            Image.fromarray(photo).save(copy, format='PNG')
            sample.set_metainfo(dict(img_path=str(copy)))
