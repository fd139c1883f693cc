"""The classes of the mini data set: one table, from which every layout takes its ids.

The ids are the real ones: an ADE20K label png holds ``ade_id`` (1 to 150, 0 is "other"), a COCO
annotation ``coco_id`` with COCO's name and supercategory, an ImageNet folder is called ``wnid``
(the nearest of the thousand: a person becomes the ballplayer, grass the valley).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SceneClass:
    """One class as every layout calls it.

    Args:
        name: our name, which is ADE20K's.
        ade_id: label in an ADE20K annotation png, 1 to 150.
        coco_id: COCO category id, or None for stuff, which COCO's instances leave out.
        wnid: ImageNet folder, or None for a class that no crop is made of.
    """

    name: str
    ade_id: int
    coco_id: int | None = None
    wnid: str | None = None

    @property
    def is_thing(self) -> bool:
        """Whether the class has instances."""
        return self.coco_id is not None


# Index i of this tuple is label i + 1 in Scene.semantic; label 0 is "other".
CLASSES: tuple[SceneClass, ...] = (
    SceneClass('wall', 1, wnid='n04326547'),  # stone wall
    SceneClass('sky', 3),
    SceneClass('floor', 4),
    SceneClass('grass', 10, wnid='n09468604'),  # valley
    SceneClass('water', 22, wnid='n09332890'),  # lakeside
    SceneClass('person', 13, coco_id=1, wnid='n09835506'),  # ballplayer
    SceneClass('chair', 20, coco_id=62, wnid='n03376595'),  # folding chair
    SceneClass('book', 68, coco_id=84, wnid='n07248320'),  # book jacket
    SceneClass('bottle', 99, coco_id=44, wnid='n04557648'),  # water bottle
    SceneClass('ball', 120, coco_id=37, wnid='n04254680'),  # soccer ball
    SceneClass('vase', 136, coco_id=86, wnid='n04522168'),
    SceneClass('clock', 149, coco_id=85, wnid='n02708093'),  # analog clock
)

LABELS: dict[str, int] = {c.name: i + 1 for i, c in enumerate(CLASSES)}
THINGS: tuple[str, ...] = tuple(c.name for c in CLASSES if c.is_thing)
BY_NAME: dict[str, SceneClass] = {c.name: c for c in CLASSES}

# All 80 categories of COCO 2017, as its json files list them, so that a config written for COCO
# (80 classes) reads the mini data set unchanged.
_COCO_SUPERCATEGORIES = (
    ('person', '1 person'),
    (
        'vehicle',
        '2 bicycle,3 car,4 motorcycle,5 airplane,6 bus,7 train,8 truck,9 boat',
    ),
    (
        'outdoor',
        '10 traffic light,11 fire hydrant,13 stop sign,14 parking meter,15 bench',
    ),
    (
        'animal',
        '16 bird,17 cat,18 dog,19 horse,20 sheep,21 cow,22 elephant,23 bear,24 zebra,25 giraffe',
    ),
    ('accessory', '27 backpack,28 umbrella,31 handbag,32 tie,33 suitcase'),
    (
        'sports',
        '34 frisbee,35 skis,36 snowboard,37 sports ball,38 kite,39 baseball bat,'
        '40 baseball glove,41 skateboard,42 surfboard,43 tennis racket',
    ),
    ('kitchen', '44 bottle,46 wine glass,47 cup,48 fork,49 knife,50 spoon,51 bowl'),
    (
        'food',
        '52 banana,53 apple,54 sandwich,55 orange,56 broccoli,57 carrot,58 hot dog,59 pizza,'
        '60 donut,61 cake',
    ),
    ('furniture', '62 chair,63 couch,64 potted plant,65 bed,67 dining table,70 toilet'),
    ('electronic', '72 tv,73 laptop,74 mouse,75 remote,76 keyboard,77 cell phone'),
    ('appliance', '78 microwave,79 oven,80 toaster,81 sink,82 refrigerator'),
    (
        'indoor',
        '84 book,85 clock,86 vase,87 scissors,88 teddy bear,89 hair drier,90 toothbrush',
    ),
)

COCO_CATEGORIES: tuple[dict, ...] = tuple(
    {'supercategory': group, 'id': int(number), 'name': name}
    for group, members in _COCO_SUPERCATEGORIES
    for number, _, name in (member.partition(' ') for member in members.split(','))
)
