"""The mini data set on disk: built whole or not at all.

A data set is built in a hidden folder beside its place and renamed when it is complete, so a folder
with a manifest (`mini_data.json`) is always a whole one. The manifest records the parameters and a
digest of the generator's source: the same request finds the data set there and returns at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from clustr_mm.datasets.mini import classes, drawing, figures, layouts, scenes, textures, things
from clustr_mm.datasets.mini.layouts import IMAGENET_CLASSES, AdeWriter, CocoWriter, write_imagenet
from clustr_mm.datasets.mini.scenes import MIN_SIDE, make_scene

LAYOUTS = ('ade20k', 'coco', 'coco_wholebody', 'imagenet', 'all')
MANIFEST = 'mini_data.json'
# Where each layout's data_root lies below the folder, when it is alone and among all.
_ROOTS = {'ade20k': 'ADEChallengeData2016', 'coco': '', 'coco_wholebody': '', 'imagenet': ''}
_ROOTS_OF_ALL = {
    'ade20k': 'ade/ADEChallengeData2016',
    'coco': 'coco',
    'coco_wholebody': 'coco',
    'imagenet': 'imagenet',
}


class MiniDataError(ValueError):
    """The mini data set cannot be made as asked."""


@dataclass(frozen=True)
class MiniData:
    """What a mini data set is made of.

    Args:
        layout: one of `LAYOUTS`; 'all' makes the four side by side, of the same scenes.
        train: number of training pictures.
        val: number of validation pictures.
        size: height and width of a picture in pixels.
        seed: two seeds share no scene.

    Raises:
        MiniDataError: for a value that cannot be.
    """

    layout: str = 'ade20k'
    train: int = 400
    val: int = 60
    size: tuple[int, int] = (160, 160)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise MiniDataError(f'layout is {self.layout!r}, must be one of: {", ".join(LAYOUTS)}')
        least = len(IMAGENET_CLASSES) if self.layout in ('imagenet', 'all') else 1
        for split, count in self.counts.items():
            if count < least:
                raise MiniDataError(
                    f'{split} is {count} pictures, layout {self.layout} needs at least {least}'
                    + (' (one a class)' if least > 1 else '')
                )
        if min(self.size) < MIN_SIDE:
            raise MiniDataError(
                f'size is {self.size[0]} x {self.size[1]} pixels, both sides must be {MIN_SIDE} '
                'or more'
            )
        if self.seed < 0:
            raise MiniDataError(f'seed is {self.seed}, must be 0 or more')

    @property
    def counts(self) -> dict[str, int]:
        """Number of pictures of each split."""
        return {'train': self.train, 'val': self.val}

    @property
    def roots(self) -> dict[str, str]:
        """data_root of each layout in it, relative to the folder."""
        if self.layout == 'all':
            return _ROOTS_OF_ALL
        return {self.layout: _ROOTS[self.layout]}


def build(
    out: str | os.PathLike,
    data: MiniData | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Path]:
    """Make a mini data set, or find it made.

    Args:
        out: folder to make. It may be absent, empty, or an older mini data set (then replaced).
        data: what to make; None means the defaults.
        progress: called with the pictures done and their total.

    Returns:
        data_root of each layout, for `--data-root`.

    Raises:
        MiniDataError: if `out` is a file or holds something else.
        OSError: if it cannot be written; nothing half-made is left then.
    """
    data = data or MiniData()
    folder = Path(out).resolve()  # a link's folder, not the link, is replaced
    manifest = _manifest(data)
    if _read_manifest(folder) == manifest:
        return _roots(folder, data)
    _check_free(folder)

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise MiniDataError(f'{error.filename} is a file: name another folder') from error
    partial = folder.with_name(f'.{folder.name}.{os.getpid()}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        _write(partial, data, progress or (lambda done, total: None))
        text = json.dumps(manifest | {'entries': sorted(os.listdir(partial))}, indent=1)
        (partial / MANIFEST).write_text(text + '\n')
        _move(partial, folder, manifest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _roots(folder, data)


def _roots(folder: Path, data: MiniData) -> dict[str, Path]:
    return {layout: folder / root for layout, root in data.roots.items()}


def _manifest(data: MiniData) -> dict:
    source = hashlib.sha256()
    for module in (classes, drawing, figures, layouts, scenes, textures, things):
        source.update(Path(str(module.__file__)).read_bytes())
    # Through json, so that it compares equal to what is read back.
    return json.loads(json.dumps({'generator': source.hexdigest(), **asdict(data)}))


def _read_manifest(folder: Path) -> dict | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    if isinstance(manifest, dict):
        manifest.pop('entries', None)
        return manifest
    return None


def _check_free(folder: Path) -> None:
    """Refuse a place whose contents are not ours to replace."""
    mend = 'name another folder, or remove it first'
    if folder.exists() and not folder.is_dir():
        raise MiniDataError(f'{folder} is a file: {mend}')
    present = set(os.listdir(folder)) if folder.is_dir() else set()
    if not present:
        return
    if MANIFEST not in present:
        raise MiniDataError(f'{folder} is not empty and holds no mini data set: {mend}')
    try:
        ours = {MANIFEST, *json.loads((folder / MANIFEST).read_text())['entries']}
    except (ValueError, KeyError, TypeError):
        raise MiniDataError(f'{folder / MANIFEST} is damaged: {mend}') from None
    if present - ours:
        raise MiniDataError(
            f'{folder} holds another mini data set and beside it {min(present - ours)!r}, which is '
            f'not part of it: {mend}'
        )


def _write(root: Path, data: MiniData, progress: Callable[[int, int], None]) -> None:
    roots = {layout: root / below for layout, below in data.roots.items()}
    passes = ('imagenet' in roots) + (set(roots) != {'imagenet'})
    done, total = 0, passes * sum(data.counts.values())

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    for split, count in data.counts.items():
        writers: list[AdeWriter | CocoWriter] = []
        if 'ade20k' in roots:
            writers.append(AdeWriter(roots['ade20k'], split))
        coco = roots.get('coco') or roots.get('coco_wholebody')
        if coco is not None:
            writers.append(CocoWriter(coco, split, 'coco' in roots, 'coco_wholebody' in roots))
        if writers:
            for index in range(count):
                scene = make_scene(data.seed, split, index, data.size)
                for writer in writers:
                    writer.add(index, scene)
                tick()
            for writer in writers:
                writer.close()
        if 'imagenet' in roots:
            write_imagenet(roots['imagenet'], split, count, data.size, data.seed, tick)


def _move(partial: Path, folder: Path, manifest: dict) -> None:
    """Put the finished folder in its place; an older mini data set there goes."""
    if _read_manifest(folder) == manifest:  # somebody else made the same meanwhile
        return
    _check_free(folder)
    if folder.is_dir() and os.listdir(folder):
        old = partial.with_suffix('.old')
        os.rename(folder, old)
        os.rename(partial, folder)
        shutil.rmtree(old)
    else:
        os.rename(partial, folder)  # replaces an empty folder
