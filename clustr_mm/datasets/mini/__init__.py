"""The mini data set: scenes drawn by a program, in the layouts of the real data sets."""

from clustr_mm.datasets.mini.mini import LAYOUTS, MiniData, MiniDataError, build

__all__ = ['LAYOUTS', 'MiniData', 'MiniDataError', 'build']
