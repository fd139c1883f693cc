"""Merging: the weighted means of the tokens of each cluster.

``merge.py`` is the definition and the choice, ``triton.py`` the same on a GPU.
"""

from clustr_mm.ops.merging.merge import (
    merge_by_product,
    merge_scales,
    merge_single_tokens,
    merge_tokens,
)

__all__ = ['merge_by_product', 'merge_scales', 'merge_single_tokens', 'merge_tokens']
