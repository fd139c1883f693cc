"""Checkpoints: read without running code, load strictly, convert."""
