"""Dot plots: one line a setting, one panel a quantity, so that names and dots never overlap."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

_MARKERS = 'osD^v'


@dataclass(frozen=True)
class Panel:
    """A quantity.

    Attributes:
        label: Its name and unit.
        series: Values by name, in the order of the settings: several to one setting where a
            sequence stands in place of a number; None where there is none.
        from_zero: Whether the axis begins at 0.
    """

    label: str
    series: Mapping[str, Sequence[float | Sequence[float] | None]]
    from_zero: bool = True


def plot_dots(
    settings: Sequence[str], panels: Sequence[Panel], path: str | os.PathLike, title: str = ''
) -> None:
    """Draws the panels side by side.

    Args:
        settings: Names of the lines, from the top.
        panels: The quantities.
        path: The picture to write; its suffix says the format.
        title: A line above.
    """
    figure = Figure(figsize=(3.2 + 2.4 * len(panels), 1.5 + 0.27 * len(settings)))
    figure.set_layout_engine('constrained')
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        drawn: list[float] = []
        for index, (name, values) in enumerate(panel.series.items()):
            points = [
                (each, line)
                for line, value in enumerate(values)
                for each in (value if isinstance(value, Sequence) else (value,))
                if each is not None
            ]
            xs = [x for x, _ in points]
            marker = _MARKERS[index % len(_MARKERS)]
            axes.plot(
                xs,
                [line for _, line in points],
                marker,
                color=f'C{index}',
                label=name,
                markersize=5,
                alpha=0.8,
            )
            drawn += xs
        if panel.from_zero:
            top = max(drawn, default=0) or 1
            axes.set_xlim(-0.05 * top, 1.08 * top)
        if len(panel.series) == 1 and drawn:  # the first setting is what others are compared with
            axes.axvline(drawn[0], color='0.6', linewidth=0.8, zorder=0)
        axes.locator_params(axis='x', nbins=5)
        axes.set_xlabel(panel.label, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis='y', color='0.9')
        axes.set_axisbelow(True)
        if panel is panels[0]:
            axes.set_yticks(range(len(settings)), settings, family='monospace')
            axes.set_ylim(len(settings) - 0.5, -0.5)
        if len(panel.series) > 1:
            axes.legend(
                fontsize=7, loc='lower center', bbox_to_anchor=(0.5, 1), frameon=False,
                ncols=len(panel.series), handletextpad=0, columnspacing=0.6,
            )  # fmt: skip
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
