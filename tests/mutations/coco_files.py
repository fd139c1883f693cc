"""Mutations of a COCO file as a whole, of its parts and of its images' records."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import numpy as np

from .case import Case, Mutation


def _whole_file(case: Case, change: Callable[[bytes, np.random.Generator], bytes]) -> None:
    case.last = lambda coco: change(json.dumps(coco).encode(), case.rng)
    case.refuse(case.json)


def _byte_order_mark(text: bytes, rng: np.random.Generator) -> bytes:
    return b'\xef\xbb\xbf' + text


_FILES: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    'empty': lambda text, rng: b'',
    'cut': lambda text, rng: text[: rng.integers(1, len(text))],
    'cut short of the last brace': lambda text, rng: text[:-1],
    'zeros': lambda text, rng: bytes(len(text)),
    'noise': lambda text, rng: rng.bytes(999),
    'a byte that is no text': lambda text, rng: text.replace(b'jpg', b'j\xffg', 1),
    'byte order mark': _byte_order_mark,
    'utf-16': lambda text, rng: text.decode().encode('utf-16'),
    'twice': lambda text, rng: text + text,
    'a web page': lambda text, rng: b'<!DOCTYPE html><title>404 Not Found</title>',
    'null': lambda text, rng: b'null',
    'a list': lambda text, rng: b'[' + text + b']',
    'a number': lambda text, rng: b'17',
    'nothing in it': lambda text, rng: b'{}',
    'brackets without end': lambda text, rng: b'[' * 200_000,
}


def _replace(case: Case, name: str, value: object) -> None:
    """Gives a whole part of the file another value (the part is left out if it is ...)."""

    def replaced(coco: dict) -> bytes:
        if value is ...:
            del coco[name]
        else:
            coco[name] = value(coco[name]) if callable(value) else value
        return json.dumps(coco).encode()

    case.last = replaced
    case.refuse(case.json)


_FILE_PARTS: dict[str, tuple[str, object]] = {
    'no images': ('images', ...),
    'images: none': ('images', []),
    'images: a dict': ('images', lambda value: {str(each['id']): each for each in value}),
    'images: a text': ('images', 'train2017'),
    'images: null among them': ('images', lambda value: [None, *value]),
    'no annotations': ('annotations', ...),
    'annotations: none': ('annotations', []),
    'annotations: null': ('annotations', None),
    'annotations: a dict': ('annotations', lambda value: {str(each['id']): each for each in value}),
    'annotations: lists among them': ('annotations', lambda value: [*value, [1, 2]]),
    'annotations: null among them': ('annotations', lambda value: [*value, None]),
    'no categories': ('categories', ...),
    'categories: none': ('categories', []),
    'categories: names': ('categories', lambda value: [each['name'] for each in value]),
    'categories: without names': (
        'categories',
        lambda value: [dict(id=each['id']) for each in value],
    ),
    'categories: without ids': (
        'categories',
        lambda value: [dict(name=each['name']) for each in value],
    ),
    'categories: one id twice': (
        'categories',
        lambda value: [*value, dict(id=value[0]['id'], name='zebra')],
    ),
    'categories: one name twice': (
        'categories',
        lambda value: [*value, dict(id=99, name=value[0]['name'])],
    ),
}
# Labels are counted in the order of the categories; a file of persons has but one.
_OBJECT_FILE_PARTS: dict[str, tuple[str, object]] = {
    'categories: another order': ('categories', lambda value: value[::-1]),
    'categories: one gone': ('categories', lambda value: [c for c in value if c['id'] != 44]),
}


def _record(case: Case, name: str, value: object) -> None:
    """Gives an image's record a value that cannot be (or none, for ...)."""
    record = case.record()
    case.refuse(case.json)
    if value is ...:
        del record[name]
    else:
        record[name] = value


_RECORDS: dict[str, tuple[str, object]] = {
    f'image: {name} {value!r}'.replace('Ellipsis', 'left out'): (name, value)
    for name, values in {
        'id': (..., None, [1], {}),
        'file_name': (..., None, 17, ['a.jpg']),
        'height': (..., None, 'tall', 0, -48, np.nan, np.inf, 48.5),
        'width': (..., None, [64], 0, -64, np.nan),
    }.items()
    for value in values
}


def wrong_size_in_record(case: Case) -> None:
    """The record's size is not the image's."""
    record = case.record()
    record['height'], record['width'] = record['width'], record['height']
    case.refuse(record['file_name'])
    case.refuse(case.json)  # its masks do not fit, either


def missing_file_named(case: Case) -> None:
    """The record names an image that is not there."""
    record = case.record()
    record['file_name'] = 'gone.jpg'
    case.refuse('gone.jpg')


def image_ids_as_texts(case: Case) -> None:
    """Ids of images are texts, in records and annotations alike."""

    def typed(coco: dict) -> bytes:
        for records, name in ((coco['images'], 'id'), (coco['annotations'], 'image_id')):
            for each in records:
                if isinstance(each.get(name), int):
                    each[name] = str(each[name])
        return json.dumps(coco).encode()

    case.last = typed
    if case.task == 'pose':  # mmpose counts with them
        case.refuse(case.json)


def image_id_twice(case: Case) -> None:
    """Two images have one id."""
    assert case.coco is not None
    record, other = case.record(), case.record()
    record['id'] = other['id']
    case.refuse(case.json)


def shuffled(case: Case) -> None:
    """Annotations and images stand in another order."""
    assert case.coco is not None
    for name in ('images', 'annotations'):
        case.rng.shuffle(case.coco[name])


def unknown_fields(case: Case) -> None:
    """Records have fields that nobody knows, and the file has parts that nobody knows."""
    assert case.coco is not None
    case.coco['score'] = [np.nan]
    for each in (*case.coco['images'], *case.coco['annotations'], *case.coco['categories']):
        each['note'] = {'\u2603': [None, np.inf]}


def without_head(case: Case) -> None:
    """The file says nothing about itself."""
    assert case.coco is not None
    del case.coco['info'], case.coco['licenses']


def unlisted_images(case: Case) -> None:
    """An image is not listed, and its annotations are still there."""
    assert case.coco is not None
    record = case.record()
    case.coco['images'].remove(record)
    path = case.root / 'train2017' / record['file_name']
    case.samples = {key: each for key, each in case.samples.items() if each.path != path}
    case.warnings.append('an image that the file does not list')


FILE_MUTATIONS: dict[str, Mutation] = {
    **{f'file: {name}': partial(_whole_file, change=each) for name, each in _FILES.items()},
    **{f'file: {key}': partial(_replace, name=n, value=v) for key, (n, v) in _FILE_PARTS.items()},
    **{key: partial(_record, name=name, value=v) for key, (name, v) in _RECORDS.items()},
    'image: size turned': wrong_size_in_record,
    'image: names a file that is not there': missing_file_named,
    'image: ids as texts': image_ids_as_texts,
    'image: one id twice': image_id_twice,
    'file: shuffled': shuffled,
    'file: unknown fields': unknown_fields,
    'file: without head': without_head,
    'file: images not listed': unlisted_images,
}
OBJECT_FILE_MUTATIONS: dict[str, Mutation] = {
    f'file: {key}': partial(_replace, name=name, value=value)
    for key, (name, value) in _OBJECT_FILE_PARTS.items()
}
