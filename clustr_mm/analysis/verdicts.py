"""What must hold on a GPU, judged by what was read, and the summary of a check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from clustr_mm.analysis.gpu_sizes import Reading, Sizes


@dataclass(frozen=True)
class Criterion:
    """A line of what must hold.

    Attributes:
        text: The line.
        part: Whose reading decides.
        subject: The reading's; of several that begin with it the worst counts.
        quantity: The reading's.
        limit: The value from which, or up to which, it holds.
        at_least: Whether the limit is a least value.
    """

    text: str
    part: str
    subject: str
    quantity: str
    limit: float
    at_least: bool


def criteria(sizes: Sizes) -> list[Criterion]:
    """The lines, at some sizes.

    Args:
        sizes: Of the check.

    Returns:
        The lines in the order of the list of what must hold.
    """
    model, peer, side = sizes.model, sizes.baseline, sizes.side
    where = f'{side}x{side}, batch {sizes.batch}'
    lines = []
    for what in ('inference', 'training'):
        for part in ('eager', 'compiled'):
            lines.append(
                Criterion(
                    f'1. {model}, {where}, {what}, {part}: throughput / {peer}',
                    part,
                    f'{model}, {what}, {where}',
                    f'throughput / {peer}',
                    0.9,
                    True,
                )
            )
    batch, height, width = sizes.mask_rcnn
    detection = f'mask_rcnn training, {height}x{width}, batch {batch}'
    exact = f'{model}+cluster_window=None'
    batch, height, width = sizes.upernet
    segmentation = f'upernet training, {height}x{width}, batch {batch}'
    for label, subject, quantity, limit, at_least in (
        ("the config's default", f'{model}, {detection}', f'throughput / {peer}', 0.8, True),
        ("the config's default", f'{model}, {detection}', f'peak memory / {peer}', 1.15, False),
        ('exact global', f'{exact}, {detection}', f'throughput / {peer}', 0.6, True),
        ('exact', f'{model}, {segmentation}', f'throughput / {peer}', 0.85, True),
    ):
        text = f'2. {subject}, {label}: {quantity}'
        lines.append(Criterion(text, 'models', subject, quantity, limit, at_least))
    tokens = f'{sizes.tokens} x {sizes.channels}'
    for subject, quantity, limit in (
        ('dpc_knn, fp16x3', 'ms', 5.0),
        ('dpc_knn, fp16x3', 'time / that product', 2.5),
        ('dpc_knn, fp16x3', 'MB above the input', 50.0),
        ('K1 + K3, fp16', 'time / theirs', 1.0),
    ):
        text = f'3. {subject}, {tokens}: {quantity}'
        lines.append(Criterion(text, 'clustering', subject, quantity, limit, False))
    for quantity, limit, at_least in (
        ('tokens with the centre of the definition on rounded operands', 0.999, True),
        ("merge's error / plain PyTorch's", 2.0, False),
        ("logits' gradient's error / plain PyTorch's", 2.0, False),
        ("MLP's error / plain PyTorch's", 2.0, False),
        ("residual sum's error / plain PyTorch's", 2.0, False),
        ("attention's error / plain PyTorch's", 2.0, False),
        ('repeats with other labels', 0.0, False),
    ):
        lines.append(
            Criterion(f'Kernels: {quantity}', 'correctness', '', quantity, limit, at_least)
        )
    return lines


def judge(
    criterion: Criterion, readings: Iterable[Reading], failures: Mapping[str, str]
) -> tuple[bool | None, str]:
    """Says whether a line holds.

    Args:
        criterion: The line.
        readings: All that was read.
        failures: Of the parts that did not end well, the reason.

    Returns:
        Whether it holds, None where it was not measured; and the figure, or why there is none.
    """
    of_part = [reading for reading in readings if reading.part == criterion.part]
    values = [
        reading.value
        for reading in of_part
        if reading.value is not None
        and reading.quantity == criterion.quantity
        and reading.subject.startswith(criterion.subject)
    ]
    if not values:
        skipped = [r.note for r in of_part if r.quantity == 'skipped' and _concerns(r, criterion)]
        return None, '; '.join(skipped) or failures.get(criterion.part, 'not measured')
    worst = min(values) if criterion.at_least else max(values)
    if worst != worst:
        return False, 'not a number'
    holds = worst >= criterion.limit if criterion.at_least else worst <= criterion.limit
    return holds, f'{worst:.4g}'


def _concerns(reading: Reading, criterion: Criterion) -> bool:
    """Whether what was skipped is what the line is about: by the subject's words."""
    if criterion.part == 'models':
        return reading.subject in criterion.subject
    return criterion.subject.startswith('K1 + K3')


def summary(
    sizes: Sizes,
    readings: Sequence[Reading],
    failures: Mapping[str, str],
    facts: Mapping[str, object],
    heading: str,
) -> str:
    """A page of Markdown: the circumstances, the verdicts, then every figure.

    Args:
        sizes: Of the check.
        readings: All that was read.
        failures: Of the parts that did not end well, the reason.
        facts: Device, versions, command.
        heading: The first line.

    Returns:
        The page.
    """
    lines = [f'# {heading}', '']
    lines += [f'- {key}: {value}' for key, value in facts.items()]
    lines += ['', '| what must hold | limit | here | verdict |', '|---|--:|--:|---|']
    for criterion in criteria(sizes):
        holds, figure = judge(criterion, readings, failures)
        verdict = {True: 'holds', False: '**fails**', None: 'not measured'}[holds]
        sign = 'at least' if criterion.at_least else 'at most'
        lines.append(f'| {criterion.text} | {sign} {criterion.limit:g} | {figure} | {verdict} |')
    if failures:
        lines += ['', '## Parts that did not end well', '']
        lines += [f'- {part}: {reason}' for part, reason in failures.items()]
    for part in dict.fromkeys(reading.part for reading in readings):
        lines += ['', f'## {part}', '', '| of | what | figure |', '|---|---|--:|']
        for reading in readings:
            if reading.part == part:
                figure = '' if reading.value is None else f'{reading.value:.5g}'
                note = f' {reading.note}' if reading.note else ''
                lines.append(f'| {reading.subject} | {reading.quantity} | {figure}{note} |')
    return '\n'.join(lines) + '\n'
