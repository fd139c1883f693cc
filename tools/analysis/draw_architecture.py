"""Draws the network from its own facts: four stages, a block, cluster attention at two scales.

    python tools/analysis/draw_architecture.py [--arch small] [--out docs/architecture.svg]

Sizes, channels, blocks, heads and cluster counts are read from a network that is built and run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import matplotlib
import torch

from clustr_mm.engine.errors import run_tool
from clustr_mm.engine.options import Parser
from clustr_mm.models import ClusterAttention, ClusTR
from clustr_mm.models.clustr import ARCHS, Block, Stage

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402  after the choice of what draws
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import FancyBboxPatch, Rectangle  # noqa: E402

SIDE = 512  # of the image that the picture speaks of
STAGE, PLAIN, COARSE, FINE = '#dbe7f3', '#f4f4f4', '#f7d9b8', '#cfe6c9'
# A map of 8 x 8 tokens in five clusters, and in more of a finer scale, to show what they are.
COARSE_MAP = '00000111 00001111 22001133 22220333 22244333 22444433 22444443 22444444'.split()
FINE_MAP = '00112233 04112233 55462777 55866977 58899a77 b8cc9aad bbccceed bbcceeed'.split()


class StageFacts(NamedTuple):
    """What a stage's box says.

    Attributes:
        blocks: Number of blocks.
        channels: C.
        heads: Heads of the attention.
        size: Height and width of its map.
        clusters: Cluster counts of the scales; empty for ordinary attention.
    """

    blocks: int
    channels: int
    heads: int
    size: tuple[int, int]
    clusters: tuple[int, ...]


def stage_facts(arch: str) -> list[StageFacts]:
    """The facts of the stages of a network on an image of 512 x 512."""
    net = ClusTR(arch=arch).eval()
    with torch.device('meta'):
        image = torch.empty(1, 3, SIDE, SIDE)
    maps = net.to('meta')(image)
    facts = []
    for stage, each in zip(net.stages, maps, strict=True):
        blocks = list(cast(Stage, stage).blocks)
        attn = cast(Block, blocks[0]).attn
        height, width = each.shape[2:]
        clusters = attn.num_clusters(height * width) if isinstance(attn, ClusterAttention) else ()
        facts.append(
            StageFacts(len(blocks), each.shape[1], attn.num_heads, (height, width), clusters)
        )
    return facts


def draw(arch: str, out: str) -> None:
    """Draws the picture into a file, whose ending says how."""
    figure, axes = plt.subplots(figsize=(11.5, 7))
    axes.set_xlim(-0.5, 111)
    axes.set_ylim(-3, 64)
    axes.axis('off')
    figure.subplots_adjust(0, 0, 1, 1)
    _stages(axes, arch, stage_facts(arch))
    _block(axes)
    _attention(axes)
    figure.savefig(out, bbox_inches='tight', pad_inches=0.05, dpi=130)
    plt.close(figure)


def _stages(axes: Axes, arch: str, facts: Sequence[StageFacts]) -> None:
    _text(axes, 0, 62.5, f'ClusTR, arch {arch!r}, on an image of {SIDE} x {SIDE}', bold=True)
    _box(axes, 0, 46, 11, 12, PLAIN, ['image', f'{SIDE} x {SIDE}', '3 channels'])
    x = 15.0
    for number, each in enumerate(facts, start=1):
        attention = (
            ['every token attends to', ' + '.join(f'{m:,}' for m in each.clusters) + ' clusters']
            if each.clusters
            else ['every token attends to', 'every token']
        )
        lines = [
            f'stage {number}',
            f'{each.size[0]} x {each.size[1]} tokens, C = {each.channels}',
            f'{each.blocks} blocks, {each.heads} head{"s" * (each.heads > 1)}',
            *attention,
        ]
        _box(axes, x, 44, 20.5, 16, STAGE, lines, bold_first=True)
        _arrow(axes, (x - 4, 52), (x, 52))
        _arrow(axes, (x + 10.25, 44), (x + 10.25, 41))
        shape = f'map {each.channels} x {each.size[0]} x {each.size[1]}'
        _text(axes, x + 10.25, 39.3, shape, centre=True)
        x += 24.5
    _text(
        axes,
        55,
        36.4,
        'to a neck, or to the head of a detector, a segmenter, a pose network, a classifier',
        centre=True,
    )


def _block(axes: Axes) -> None:
    _text(axes, 0, 32, 'One block', bold=True)
    parts = [
        ('tokens  N x C', PLAIN),
        ('LayerNorm', PLAIN),
        ('cluster attention', COARSE),
        ('+', PLAIN),
        ('LayerNorm', PLAIN),
        ('MLP: linear, depthwise\n3 x 3, GELU, linear', PLAIN),
        ('+', PLAIN),
    ]
    y, places = 30.0, []
    for text, colour in parts:
        height = 5.0 if '\n' in text else 2.6
        y -= height
        _box(axes, 4, y, 20, height, colour, text.split('\n'))
        places.append((y, height))
        y -= 1.6
    for (above, _), (below, height) in zip(places, places[1:], strict=False):
        _arrow(axes, (14, above), (14, below + height))
    for begin, end in ((0, 3), (3, 6)):  # around the branches
        top, bottom = places[begin][0] - 0.6, places[end][0] + places[end][1] / 2
        axes.plot([14, 1.5, 1.5], [top, top, bottom], color='0.35', linewidth=1)
        _arrow(axes, (1.5, bottom), (4, bottom))


def _attention(axes: Axes) -> None:
    _text(axes, 30, 32, 'Cluster attention at two scales', bold=True)
    _box(axes, 30, 13, 13, 6, PLAIN, ['tokens x', 'N x C'])
    _box(axes, 47, 12, 13, 8, PLAIN, ['DPC-KNN', 'density peaks', 'no gradient'])
    _arrow(axes, (43, 16), (47, 16))
    scales = (
        (20.5, COARSE, COARSE_MAP, 'coarse:  N / r² clusters'),
        (2.5, FINE, FINE_MAP, 'fine:  4 N / r² clusters'),
    )
    for y, colour, cells, name in scales:
        _cells(axes, 64, y, cells)
        _text(axes, 63.5, y + 8.6, name)
        _arrow(axes, (60, 16), (63.6, y + 3.8))
        _box(axes, 76, y, 13, 7.6, colour, ['weighted mean', 'of each cluster', 'keys and values'])
        _arrow(axes, (72, y + 3.8), (76, y + 3.8))
        _arrow(axes, (89, y + 3.8), (93, 17.5 if y > 10 else 14.5))
    _box(
        axes,
        93,
        11,
        17,
        10,
        PLAIN,
        ['queries of all tokens', 'softmax(q kᵀ) v', 'sum of the scales', 'linear'],
    )
    axes.plot([36.5, 36.5, 101.5], [13, -0.2, -0.2], color='0.35', linewidth=1)
    _arrow(axes, (101.5, -0.2), (101.5, 11))
    _text(axes, 38, 0.5, 'queries')


def _cells(axes: Axes, x: float, y: float, rows: Sequence[str]) -> None:
    """A map of tokens, coloured by cluster."""
    colours = plt.get_cmap('tab20')
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            colour = colours(int(cell, 16) * 7 % 20)
            place = (x + j, y + len(rows) - 1 - i)
            axes.add_patch(
                Rectangle(place, 1, 1, facecolor=colour, edgecolor='white', linewidth=0.6)
            )


def _box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    colour: str,
    lines: Sequence[str],
    bold_first: bool = False,
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle='round,pad=0,rounding_size=0.8',
            facecolor=colour,
            edgecolor='0.45',
            linewidth=0.9,
        )
    )
    step = min(2.6, height / len(lines))
    top = y + height / 2 + step * (len(lines) - 1) / 2
    for i, line in enumerate(lines):
        _text(axes, x + width / 2, top - i * step, line, centre=True, bold=bold_first and i == 0)


def _text(
    axes: Axes, x: float, y: float, text: str, centre: bool = False, bold: bool = False
) -> None:
    style: dict[str, Any] = dict(fontsize=8.5, va='center', ha='center' if centre else 'left')
    axes.text(x, y, text, fontweight='bold' if bold else 'normal', **style)


def _arrow(axes: Axes, begin: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate('', end, begin, arrowprops=dict(arrowstyle='-|>', color='0.35', linewidth=1))


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='small', choices=sorted(ARCHS))
    parser.add_argument('--out', default='docs/architecture.svg', help='its ending says how')
    args = parser.parse_args(argv)
    draw(args.arch, args.out)


if __name__ == '__main__':
    run_tool(main)
