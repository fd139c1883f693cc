"""Merging: the weighted means of the tokens of each cluster."""
