"""GELU(u + DWConv3x3(u)), the middle of the MLP.

``conv_gelu.py`` is the definition and the choice, ``triton.py`` the same on a GPU.
"""

from clustr_mm.ops.conv_gelu.conv_gelu import can_run_conv_gelu, conv_gelu

__all__ = ['can_run_conv_gelu', 'conv_gelu']
