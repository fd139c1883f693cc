"""Cluster attention on sequences: trains a small model on a task that it makes up, in a minute.

    python tools/examples/train_on_sequences.py

Think of a recording in which several speakers take turns, each saying one word again and again. The
question is what one of them said. A sequence has 32 to 256 tokens of 32 numbers, as a spectrum
would have: the sum of the speaker's vector, the word's vector, and noise. Its first token is the
question: a speaker's vector and a question mark in place of a word. Every sequence has its own
speakers and its own words to them, so the answer cannot be learned, only looked up: the first token
must attend to those with the same speaker. Tokens of one speaker are near each other, which is what
clusters are made of.

The sequences of a batch have different lengths. They are padded, and the mask says where: padding
joins no cluster and nothing attends to it. The same model with dense attention is trained beside,
on the same sequences. Printed are the answers that are right, of 1,024 sequences that neither has
seen, and the processor's seconds of training (here on a busy machine):

    guessing: 25.0 % right
    cluster attention: 99.7 % right, trained in 35 s
    dense attention: 99.6 % right, trained in 36 s
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clustr_mm import ClusterAttention
from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.options import Parser
from clustr_mm.models import SelfAttention

FEATURES = 32  # numbers of a token
SPEAKERS = 16
WORDS = 4
LENGTHS = (32, 256)
BATCH = 32
ATTENTIONS = {
    # 2 to 16 coarse clusters and 8 to 64 fine ones
    'cluster': lambda dim, heads: ClusterAttention(dim, heads, reduction=4, scales=(1, 4)),
    'dense': SelfAttention,
}


class Recordings:
    """Makes batches of sequences, each batch anew.

    Args:
        seed: Of the sequences. The speakers' and words' vectors are always the same.
    """

    def __init__(self, seed: int) -> None:
        fixed = torch.Generator().manual_seed(0)
        self.speakers = torch.randn(SPEAKERS, FEATURES, generator=fixed)
        self.words = torch.randn(WORDS + 1, FEATURES, generator=fixed)  # the last is the question
        self.random = torch.Generator().manual_seed(seed)

    def batch(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Makes sequences, padded to the longest.

        Args:
            size: Number of sequences B.

        Returns:
            Tokens (B, N, 32), their mask (B, N), True at tokens, and the answers (B,).
        """
        lengths = torch.randint(LENGTHS[0], LENGTHS[1] + 1, (size,), generator=self.random)
        tokens = torch.zeros(size, int(lengths.max()), FEATURES)
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        answers = torch.empty(size, dtype=torch.int64)
        for row, length in enumerate(lengths.tolist()):
            present = torch.randperm(SPEAKERS, generator=self.random)[: self._pick(3, 8)]
            says = torch.randint(WORDS, (SPEAKERS,), generator=self.random)
            asked = present[self._pick(0, len(present) - 1)]
            turns = present[torch.randint(len(present), (length - 1,), generator=self.random)]
            turns[self._pick(0, length - 2)] = asked  # at least once
            answers[row] = says[asked]
            tokens[row, 0] = self.speakers[asked] + self.words[WORDS]
            tokens[row, 1:length] = self.speakers[turns] + self.words[says[turns]]
        noise = torch.randn(tokens.shape, generator=self.random) / 2
        return (tokens + noise).masked_fill(~mask[..., None], 0), mask, answers

    def _pick(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.random))


class Listener(nn.Module):
    """A transformer of two blocks that answers from what its first token has become.

    Args:
        attention: ``'cluster'`` or ``'dense'``.
        dim: Channels C.
        heads: Attention heads.
    """

    def __init__(self, attention: str, dim: int = 64, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, dim)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                dict(
                    norm1=nn.LayerNorm(dim),
                    attention=ATTENTIONS[attention](dim, heads),
                    norm2=nn.LayerNorm(dim),
                    mlp=nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)),
                )
            )
            for _ in range(2)
        )
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, WORDS))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Scores the answers: tokens (B, N, 32) and mask (B, N) to (B, 4)."""
        x = self.embed(tokens)  # (B, N, C)
        for block in self.blocks:
            x = x + block['attention'](block['norm1'](x), mask=mask)
            x = x + block['mlp'](block['norm2'](x))
        return self.head(x[:, 0])


def train(attention: str, steps: int, seed: int) -> Listener:
    """Trains a model on new sequences in every step."""
    torch.manual_seed(seed)
    model = Listener(attention)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    recordings = Recordings(seed + 1)
    for step in range(steps):
        tokens, mask, answers = recordings.batch(BATCH)
        loss = F.cross_entropy(model(tokens, mask), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f'{attention}: step {step}, loss {loss.item():.3f}', file=sys.stderr)
    return model.eval()


@torch.no_grad()
def accuracy(model: Listener, batches: int = 32) -> float:
    """The fraction of right answers to new sequences."""
    recordings = Recordings(-1)  # no training's
    right = 0
    for _ in range(batches):
        tokens, mask, answers = recordings.batch(BATCH)
        right += (model(tokens, mask).argmax(1) == answers).sum().item()
    return right / (batches * BATCH)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=200, help='of training (200)')
    parser.add_argument('--seed', type=int, default=0, help='of the weights and the sequences')
    parser.add_argument(
        '--attention', nargs='+', choices=list(ATTENTIONS), default=list(ATTENTIONS)
    )
    options = parser.parse_args(argv)
    if options.steps < 2:
        raise UserError(f'--steps is {options.steps}; use at least 2')
    if options.seed < 0:
        raise UserError(f'--seed is {options.seed}; use 0 or more')
    torch.set_num_threads(1)
    print(f'guessing: {100 / WORDS:.1f} % right', flush=True)
    for attention in options.attention:
        start = time.process_time()
        model = train(attention, options.steps, options.seed)
        seconds = time.process_time() - start
        right = 100 * accuracy(model)
        print(f'{attention} attention: {right:.1f} % right, trained in {seconds:.0f} s', flush=True)


if __name__ == '__main__':
    sys.exit(run_tool(main))
