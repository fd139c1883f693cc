"""The mini data set: scenes drawn by a program, in the layouts of the real data sets."""

from clustr_mm.datasets.mini.mini import build
from clustr_mm.datasets.mini.spec import LAYOUTS, MiniData, MiniDataError

__all__ = ['LAYOUTS', 'MiniData', 'MiniDataError', 'build']
