"""What the backbone costs, and what its settings change: the maths behind tools/analysis."""
