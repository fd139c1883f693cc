"""Training and testing: the command lines, and what mmengine's runner leaves to us."""

from clustr_mm.engine.errors import UserError, explain, run_tool
from clustr_mm.engine.launch import build_runner, test, train, validate_untrained

__all__ = [
    'UserError',
    'build_runner',
    'explain',
    'run_tool',
    'test',
    'train',
    'validate_untrained',
]
