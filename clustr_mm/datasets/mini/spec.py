"""What a mini data set can be: its classes, its layouts, and a request for one.

No import but the standard library's: tools/make_mini_data.py refuses a wrong request at once.
"""

from dataclasses import dataclass
from typing import NamedTuple

LAYOUTS = ('ade20k', 'coco', 'coco_wholebody', 'imagenet', 'all')
MIN_SIDE = 32  # pixels; below it nothing can be told from anything


class SceneClass(NamedTuple):
    """One class as every layout calls it; stuff has no `coco_id`, and `wnid` is the nearest one."""

    name: str  # ADE20K's and ours
    ade_id: int  # label in an ADE20K annotation png, 1 to 150
    coco_id: int | None = None
    wnid: str = ''


# Index i of this tuple is label i + 1 in Scene.semantic.
CLASSES = (
    SceneClass('wall', 1, wnid='n04326547'),  # stone wall
    SceneClass('sky', 3),
    SceneClass('floor', 4),
    SceneClass('grass', 10, wnid='n09468604'),  # valley
    SceneClass('water', 22, wnid='n09332890'),  # lakeside
    SceneClass('person', 13, 1, 'n09835506'),  # ballplayer
    SceneClass('chair', 20, 62, 'n03376595'),  # folding chair
    SceneClass('book', 68, 84, 'n07248320'),  # book jacket
    SceneClass('bottle', 99, 44, 'n04557648'),  # water bottle
    SceneClass('ball', 120, 37, 'n04254680'),  # soccer ball
    SceneClass('vase', 136, 86, 'n04522168'),
    SceneClass('clock', 149, 85, 'n02708093'),  # analog clock
)
BY_NAME = {c.name: c for c in CLASSES}
LABELS = {c.name: i + 1 for i, c in enumerate(CLASSES)}
THINGS = tuple(c.name for c in CLASSES if c.coco_id)
# Those that ImageNet's layout has, in the order of their labels, which is that of the folders.
IMAGENET_NAMES = tuple(c.name for c in sorted(CLASSES, key=lambda c: c.wnid) if c.wnid)

# All 80 categories of COCO 2017, as its json files list them, so that a config written for COCO
# (80 classes) reads the mini data set unchanged. Ten of the ids from 1 to 90 are not taken.
_COCO_NAMES = (
    'person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,'
    'stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,'
    'backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,'
    'baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,'
    'bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,'
    'potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,'
    'oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush'
).split(',')
_COCO_IDS = (i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
COCO_CATEGORIES = tuple({'id': i, 'name': n} for i, n in zip(_COCO_IDS, _COCO_NAMES, strict=True))


class MiniDataError(ValueError):
    """The mini data set cannot be made as asked."""


@dataclass(frozen=True)
class MiniData:
    """What a mini data set is made of.

    Args:
        layout: one of `LAYOUTS`; 'all' makes the four side by side.
        train: number of training pictures.
        val: number of validation pictures.
        size: height and width of a picture in pixels.
        seed: two seeds share no scene.
    """

    layout: str = 'ade20k'
    train: int = 400
    val: int = 60
    size: tuple[int, int] = (160, 160)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise MiniDataError(f'layout is {self.layout!r}, must be one of: {", ".join(LAYOUTS)}')
        one_each = self.layout in ('imagenet', 'all')
        least = len(IMAGENET_NAMES) if one_each else 1
        for split, count in (('train', self.train), ('val', self.val)):
            if count < least:
                raise MiniDataError(
                    f'{split} is {count} pictures, layout {self.layout} needs at least {least}'
                    + ' (one a class)' * one_each
                )
        if min(self.size) < MIN_SIDE:
            raise MiniDataError(f'size is {self.size}, must be {MIN_SIDE} pixels or more each way')
        if self.seed < 0:
            raise MiniDataError(f'seed is {self.seed}, must be 0 or more')
