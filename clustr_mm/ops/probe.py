"""The smallest Triton kernel: whether it compiles and runs is whether any can."""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python: its types are the compiler's.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def probe_kernel(out):
    """Writes 1."""
    tl.store(out, 1.0)
