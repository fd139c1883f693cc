"""What the tests of several backends share."""

import torch

from clustr_mm.ops.clustering.reference import pairwise_distance2


def curve(n: int) -> torch.Tensor:
    """Nearly equal tokens, (1, n, 64) float32: a smooth curve in steps of about 0.004."""
    generator = torch.Generator().manual_seed(0)
    pace, start = torch.rand(2, 64, generator=generator, dtype=torch.float64) * 2
    return torch.sin(torch.arange(n)[:, None] * 0.004 * pace + 3 * start).float()[None]


def sky(side: int, slope: float = 0.1) -> torch.Tensor:
    """A smooth gradient over a map, far from the origin, (1, side^2, 64) float32."""
    generator = torch.Generator().manual_seed(0)
    # In float64, so that all processors have the same tokens: their scores lie 1e-5 apart.
    along = torch.randn(2, 64, generator=generator, dtype=torch.float64)
    there = torch.randn(64, generator=generator, dtype=torch.float64)
    line = torch.linspace(0, 1, side, dtype=torch.float64)
    height = torch.cartesian_prod(line, line) @ along
    return (there + slope * height + 1e-3 * torch.sin(5 * height)).float()[None]


def some_counts(n: int) -> list[int]:
    return sorted({max(1, m) for m in (1, n // 64, n // 16, n // 4, n // 2, n - 1, n)})


def assert_invariants(
    x: torch.Tensor, labels: torch.Tensor, order: torch.Tensor, m: int, tolerance: float
) -> None:
    """Checks what holds with ties too.

    Args:
        x: Tokens, (B, N, C).
        labels: Labels for M = m, (B, N).
        order: Labels for M = N.
        m: Clusters.
        tolerance: Of a squared distance, over the largest of the tokens' mean squares.
    """
    d2 = pairwise_distance2(x.double())
    scale = x.double().square().mean(-1).max()
    for b in range(len(x)):
        centres = order[b].argsort()[:m]
        assert labels[b].unique().tolist() == list(range(m)), 'every label is present'
        assert labels[b][centres].tolist() == list(range(m)), 'every centre is its own'
        nearest = d2[b][:, centres].amin(1)
        own = d2[b].gather(1, centres[labels[b]][:, None]).squeeze(1)
        assert (own - nearest <= tolerance * scale).all(), 'every token is at minimal distance'
        place = x[b].unique(dim=0, return_inverse=True)[1]  # equal where tokens coincide
        on_a_centre = torch.isin(place, place[centres])
        assert (place[centres[labels[b]]] == place)[on_a_centre].all(), 'at distance 0, exactly'
