"""Checkpoints: read without running code, load strictly, convert."""

from clustr_mm.weights.pvt_v2 import from_pvt_v2

__all__ = ['from_pvt_v2']
