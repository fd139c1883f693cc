"""Training and testing: the command lines, and what our own runtimes add to mmengine's runner."""

from clustr_mm.engine.cli import test, train
from clustr_mm.engine.errors import UserError, explain, run_tool

__all__ = ['UserError', 'explain', 'run_tool', 'test', 'train']
