"""Dot plots: every setting has its line, every value its dot."""

import numpy as np
from PIL import Image

from clustr_mm.visualization.dots import Panel, plot_dots


def test_dots_stand_where_the_values_are(tmp_path):
    names = [f'setting={i}' for i in range(4)]
    panels = [
        Panel('one', {'': [1.0, 2.0, None, (3.0, 4.0)]}),
        Panel('stages', {'stage 1': [0.0] * 4, 'stage 2': [0.5] * 4}),
    ]
    full, sparse = tmp_path / 'full.png', tmp_path / 'sparse.png'
    plot_dots(names, panels, full, 'a title')
    plot_dots(names, [Panel('one', {'': [1.0, None, None, (3.0, 4.0)]}), panels[1]], sparse)
    pixels = [np.asarray(Image.open(path).convert('RGB')).astype(int) for path in (full, sparse)]
    assert min(pixels[0].shape[:2]) > 200
    # matplotlib's first colour, blended with white: how much of it there is.
    blue = [((p[..., 2] - p[..., 0]) > 60).sum() for p in pixels]
    assert blue[0] > blue[1] > 0


def test_nothing_to_draw_is_drawn(tmp_path):
    plot_dots(['exact'], [Panel('score', {'': [None]}, from_zero=False)], tmp_path / 'a.png')
    assert (tmp_path / 'a.png').stat().st_size > 0
