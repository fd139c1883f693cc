"""What a CPU's allocator does with memory that was freed."""

from __future__ import annotations

import ctypes
import sys


def keep_memory() -> bool:
    """Lets malloc keep freed memory, from here to the process's end.

    glibc gives every large block back to the system, and touching fresh pages then takes up to half
    of a model's time on a CPU: of models with large activations more than of others.

    Returns:
        Whether malloc could be told: glibc's alone can.
    """
    if sys.platform != 'linux':
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    # From malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD (-1 is never) and M_TOP_PAD.
    settings = ((-4, 0), (-1, -1), (-2, 2**28))
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in settings)
