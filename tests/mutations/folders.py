"""Mutations of the folders of classes that a classifier learns from."""

from __future__ import annotations

import shutil

from PIL import Image

from .case import IMAGES, Case, Mutation


def extra_class(case: Case) -> None:
    """A folder more than the head has classes, with an image in it."""
    folder = case.root / IMAGES[case.task] / 'n99999999'
    folder.mkdir()
    Image.new('RGB', (64, 64)).save(folder / 'extra.JPEG')
    case.refuse(folder.parent)


def hidden_folder(case: Case) -> None:
    """A notebook's hidden folder among the classes, which would move every label by one."""
    folder = case.root / IMAGES[case.task] / '.ipynb_checkpoints'
    folder.mkdir()
    case.refuse(folder.parent)


def class_gone(case: Case) -> None:
    """A class's folder is not there, which would move the labels behind it."""
    folder = case.image().parent
    shutil.rmtree(folder)
    case.refuse(folder.parent)


def class_renamed(case: Case) -> None:
    """A class's folder has another name than for validation."""
    folder = case.image().parent
    folder.rename(folder.with_name(f'{folder.name}_old'))
    case.refuse(folder.parent)


def class_without_images(case: Case) -> None:
    """A class's folder is there and has no image."""
    path = case.image()
    folder = path.parent
    for each in folder.iterdir():
        each.unlink()
    case.samples = {k: each for k, each in case.samples.items() if each.path.parent != folder}


def files_beside(case: Case) -> None:
    """Files that are no images lie about."""
    folder = case.image().parent
    for place in (folder, folder.parent):
        (place / 'README.md').write_text('# Images')
        (place / '.DS_Store').write_bytes(bytes(99))
        (place / 'Thumbs.db').write_bytes(bytes(99))


def images_beside(case: Case) -> None:
    """An image lies beside the folders of classes."""
    path = case.image()
    shutil.copy(path, path.parents[1] / 'stray.JPEG')


def known_extension(case: Case) -> None:
    """An image's name says another kind of image."""
    path = case.image()
    other = path.with_suffix(('.png', '.bmp', '.TIF', '.jpg')[case.rng.integers(4)])
    path.rename(other)
    for sample in case.of(path):
        sample.path = other


def deeper(case: Case) -> None:
    """An image lies in a folder below its class's."""
    path = case.image()
    (path.parent / 'more').mkdir()
    moved = path.rename(path.parent / 'more' / path.name)
    for sample in case.of(path):
        sample.path = moved


FOLDER_MUTATIONS: dict[str, Mutation] = {
    'classes: one more': extra_class,
    'classes: a hidden folder': hidden_folder,
    'classes: one gone': class_gone,
    'classes: one renamed': class_renamed,
    'classes: one without images': class_without_images,
    'files beside': files_beside,
    'images beside': images_beside,
    'known extension': known_extension,
    'deeper': deeper,
}
