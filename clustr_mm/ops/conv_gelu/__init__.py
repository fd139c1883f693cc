"""GELU(u + DWConv(u)), the middle of the MLP."""
