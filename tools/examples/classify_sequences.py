"""Cluster attention on sequences that are no pictures: spoken digits, and sentences.

    python tools/examples/classify_sequences.py digits FOLDER [--leave-out SPEAKER... | all]
    python tools/examples/classify_sequences.py sentences FOLDER

`digits` is the Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset): WAV
files DIGIT_SPEAKER_INDEX.wav anywhere in the folder. A token is a frame of 25 ms, every 5 ms: the
logarithm of 40 mel bands, less their mean over the recording. Tested on recordings 0 to 4 of every
digit and speaker, as the data set says, or on speakers that are left out of training.

`sentences` is the Stanford Sentiment Treebank with two classes, SST-2: train.tsv and test.tsv with
a sentence, a tab and 0 or 1 in each line. A token is a word; those that occur once are one word.

Three classifiers of two transformer blocks are trained on the same batches, with cluster attention,
dense attention, and the mean of all tokens in its place. Sequences of a batch have different
lengths: they are padded, and the mask says where, so padding joins no cluster and nothing attends
to it. The settings are the same for all three; printed are the right answers to the test, which
nothing was chosen by. docs/real_data.md has the results.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clustr_mm import ClusterAttention
from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.options import Parser
from clustr_mm.models import SelfAttention

RATE = 8000  # samples a second
WINDOW, HOP, BANDS = 200, 40, 40
DIM, HEADS, DEPTH = 64, 2, 2
BATCH = 32


@dataclass(frozen=True)
class Task:
    """Sequences with their classes, to train and to test on.

    Attributes:
        name: What is tested, in words.
        train: Sequences: frames (N, 40) or word numbers (N,), and classes.
        test: The same.
        classes: Number of classes.
        words: Number of words; 0 where tokens are frames.
        clusters: Arguments of ``ClusterAttention``: a tenth to a third as many clusters as tokens.
        epochs: Passes over the training sequences.
        dropout: Of the embedded tokens.
    """

    name: str
    train: list[tuple[Tensor, int]]
    test: list[tuple[Tensor, int]]
    classes: int
    words: int
    clusters: dict
    epochs: int
    dropout: float


class MeanPooling(nn.Module):
    """Gives every token the mean of all tokens' values: no attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps tokens (B, N, C) with their mask (B, N) to (B, N, C)."""
        return self.proj(masked_mean(self.value(x), mask)[:, None].expand_as(x))


ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    'cluster': lambda dim, heads, **clusters: ClusterAttention(dim, heads, **clusters),
    'dense': lambda dim, heads, **_: SelfAttention(dim, heads),
    'mean': lambda dim, heads, **_: MeanPooling(dim, heads),
}


class Classifier(nn.Module):
    """Tokens with their places, two transformer blocks, and the class of the mean token.

    Args:
        task: What the tokens are.
        attention: ``'cluster'``, ``'dense'`` or ``'mean'``.
    """

    def __init__(self, task: Task, attention: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(task.words, DIM) if task.words else nn.Linear(BANDS, DIM)
        self.dropout = nn.Dropout(task.dropout)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                dict(
                    norm1=nn.LayerNorm(DIM),
                    attention=ATTENTIONS[attention](DIM, HEADS, **task.clusters),
                    norm2=nn.LayerNorm(DIM),
                    mlp=nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM)),
                )
            )
            for _ in range(DEPTH)
        )
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, task.classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Scores the classes (B, classes) of frames (B, N, 40) or words (B, N)."""
        x = self.dropout(self.embed(tokens)) + places(tokens.shape[1])
        for block in self.blocks:
            x = x + block['attention'](block['norm1'](x), mask=mask)
            x = x + block['mlp'](block['norm2'](x))
        return self.head(masked_mean(self.norm(x), mask))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of each sequence's tokens (B, N, C) where the mask (B, N) is True: (B, C)."""
    return x.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True)


def places(tokens: int) -> Tensor:
    """Sines and cosines of each token's place, (N, C) (Vaswani et al., arXiv 1706.03762)."""
    angles = torch.arange(tokens)[:, None] / 10000 ** (torch.arange(0, DIM, 2) / DIM)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def mel_bands() -> Tensor:
    """Triangles over the spectrum's frequencies, evenly spaced in mel: (101, 40)."""

    def mel(hertz: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + hertz / 700)

    frequencies = torch.linspace(0, RATE / 2, WINDOW // 2 + 1)
    edges = torch.linspace(0, mel(torch.tensor(RATE / 2)).item(), BANDS + 2)
    place = (mel(frequencies)[:, None] - edges[:-1]) / (edges[1] - edges[0])  # (101, 41)
    return torch.minimum(place[:, :-1], 1 - place[:, 1:]).clamp(min=0)


def frames_of(file: Path, bands: Tensor) -> Tensor:
    """The logarithm of a recording's mel bands, less their mean, (N, 40)."""
    try:
        with wave.open(str(file)) as sound:
            kind = (sound.getframerate(), sound.getsampwidth(), sound.getnchannels())
            data = bytearray(sound.readframes(sound.getnframes()))
    except (wave.Error, EOFError) as error:
        raise UserError(f'{file} is no WAV file ({error}); leave it out') from error
    if kind != (RATE, 2, 1):
        raise UserError(f'{file} has {kind} (samples a second, bytes, channels); use {RATE}, 2, 1')
    samples = torch.frombuffer(data, dtype=torch.int16).float() / 2**15
    samples = F.pad(samples, (0, max(0, WINDOW - len(samples))))
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(samples, WINDOW, HOP, window=window, center=False, return_complex=True)
    energies = (spectrum.abs().square().T @ bands + 1e-8).log()  # (N, 40)
    return energies - energies.mean(0)


def digits(folder: str, left_out: Sequence[str]) -> Iterator[Task]:
    """The official split, or for each speaker that is left out a task of its own."""
    files = sorted(Path(folder).rglob('*_*_*.wav'))
    if not files:
        raise UserError(f'{folder} has no DIGIT_SPEAKER_INDEX.wav; give the data set folder')
    names = [file.stem.split('_') for file in files]
    speakers = sorted({speaker for _, speaker, _ in names})
    for speaker in left_out:
        if speaker not in (*speakers, 'all'):
            raise UserError(f'--leave-out {speaker}: the speakers are {", ".join(speakers)}')
    bands = mel_bands()
    frames = [frames_of(file, bands) for file in files]
    for speaker in speakers if 'all' in left_out else left_out or [None]:
        split: tuple[list, list] = ([], [])
        for (digit, spoken_by, index), tokens in zip(names, frames, strict=True):
            test = int(index) < 5 if speaker is None else spoken_by == speaker
            split[test].append((tokens, int(digit)))
        yield Task(
            name=f'digits, {f"{speaker} left out" if speaker else "official split"}',
            train=split[0],
            test=split[1],
            classes=10,
            words=0,
            clusters=dict(reduction=4, scales=(1, 4)),
            epochs=8,
            dropout=0.0,
        )


def sentences(folder: str, left_out: Sequence[str]) -> Iterator[Task]:
    """Sentences with their sentiment."""
    if left_out:
        raise UserError('--leave-out is for digits; sentences have no speakers')
    read: dict[str, list[tuple[list[str], int]]] = {}
    for split in ('train', 'test'):
        file = Path(folder, f'{split}.tsv')
        if not file.is_file():
            raise UserError(f'{file} does not exist; give the folder with train.tsv and test.tsv')
        lines = [line.rpartition('\t') for line in file.read_text().splitlines()]
        read[split] = [(text.split(), int(label)) for text, _, label in lines if label in '01']
    counts = Counter(word for words, _ in read['train'] for word in words)
    known = sorted(word for word, count in counts.items() if count > 1)
    numbers = {word: number for number, word in enumerate(known, 1)}  # 0 is any other
    train, test = (
        [(torch.tensor([numbers.get(word, 0) for word in words]), label) for words, label in part]
        for part in read.values()
    )
    yield Task(
        name='sentences',
        train=train,
        test=test,
        classes=2,
        words=len(known) + 1,
        clusters=dict(reduction=2, scales=(1, 2)),
        epochs=4,
        dropout=0.5,
    )


def batch_of(sequences: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens padded with 0 (B, N, ...), their mask (B, N), True at tokens, and classes (B,)."""
    tokens = nn.utils.rnn.pad_sequence([each for each, _ in sequences], batch_first=True)
    lengths = torch.tensor([len(each) for each, _ in sequences])
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    return tokens, mask, torch.tensor([label for _, label in sequences])


def train(task: Task, attention: str, seed: int, epochs: int) -> Classifier:
    """Trains a classifier; those of one seed see the same batches."""
    torch.manual_seed(seed)
    model = Classifier(task, attention)
    order = torch.Generator().manual_seed(seed)
    steps = epochs * math.ceil(len(task.train) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(len(task.train), generator=order).split(BATCH):
            tokens, mask, labels = batch_of([task.train[i] for i in part.tolist()])
            loss = F.cross_entropy(model(tokens, mask), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Classifier, sequences: Sequence[tuple[Tensor, int]]) -> float:
    """The share of sequences whose class is found, in per cent."""
    right = 0
    for start in range(0, len(sequences), BATCH):
        tokens, mask, labels = batch_of(sequences[start : start + BATCH])
        right += int((model(tokens, mask).argmax(1) == labels).sum())
    return 100 * right / len(sequences)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('digits', 'sentences'))
    parser.add_argument('folder', help='the data set')
    parser.add_argument('--leave-out', nargs='+', default=[], metavar='SPEAKER')
    parser.add_argument('--epochs', type=int, help='passes over the training sequences')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument(
        '--attention', nargs='+', choices=list(ATTENTIONS), default=list(ATTENTIONS)
    )
    options = parser.parse_args(argv)
    if options.epochs is not None and options.epochs < 1:
        raise UserError(f'--epochs is {options.epochs}; use at least 1')
    if min(options.seeds) < 0:
        raise UserError(f'--seeds has {min(options.seeds)}; use 0 or more')
    torch.set_num_threads(1)
    load = digits if options.what == 'digits' else sentences
    for task in load(options.folder, options.leave_out):
        print(f'{task.name}: {len(task.train)} to train on, {len(task.test)} to test on')
        for attention in options.attention:
            scores, start = [], time.process_time()
            for seed in options.seeds:
                model = train(task, attention, seed, options.epochs or task.epochs)
                scores.append(accuracy(model, task.test))
            seconds = (time.process_time() - start) / len(scores)
            spread = f' ± {statistics.stdev(scores):.1f}' if len(scores) > 1 else ''
            each = ', '.join(f'{score:.1f}' for score in scores)
            inside = sum(p.numel() for p in model.blocks.parameters())
            print(
                f'  {attention}: {statistics.fmean(scores):.1f}{spread} % right ({each}), '
                f'{seconds:.0f} CPU s a run, {inside} parameters in the blocks',
                flush=True,
            )


if __name__ == '__main__':
    sys.exit(run_tool(main))
