"""Kill training at random moments, start it again, and compare the weights that come out.

    python tools/analysis/kill_runs.py configs/mmpretrain/clustr_t_mini.py --data-root DIR \
        --kills 20 --cfg-options train_cfg.max_epochs=2 train_dataloader.num_batch_per_epoch=10

One run is left alone. Others are killed (SIGKILL) and started again with --resume until as many
kills were made as asked for and the last of these runs has ended; a part of the kills falls into
the writing of a checkpoint. Prints a line for each kill, and at the end how many there were, how
many steps were lost and computed again, and how many finished runs have the weights of the one left
alone, bit by bit. The exit status is 1 if one has not.

--processes 2 starts each run as tools/dist_train.sh does, over gloo, and --who says which of its
processes are killed: one rank (then torchrun starts all anew by itself), all of them, or the
launcher.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from clustr_mm.engine import UserError, run_tool
from clustr_mm.engine.options import Parser
from clustr_mm.weights.files import CheckpointError, read_checkpoint

TRAIN = Path(__file__).resolve().parents[1] / 'train.py'
VICTIMS = ('rank', 'all', 'launcher')
POLL = 0.002  # seconds


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--data-root', required=True, metavar='DIR')
    parser.add_argument('--work-dir', default='work_dirs/kill_runs', metavar='DIR')
    parser.add_argument('--kills', type=int, default=20, metavar='N')
    parser.add_argument(
        '--while-writing', type=float, default=0.4, metavar='SHARE', help='of the kills'
    )
    parser.add_argument('--processes', type=int, default=1, metavar='N')
    parser.add_argument('--who', nargs='+', choices=VICTIMS, default=['all'], help='taken in turn')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    return parser.parse_args(argv)


@dataclass
class Tally:
    """What was done and what came out.

    Attributes:
        kills: How many times something was killed.
        while_writing: How many of them while a checkpoint was being written.
        repeated: Steps that were done and had to be computed again.
        runs: Runs that ended.
        equal: Those of them with the weights of the run left alone.
    """

    kills: int = 0
    while_writing: int = 0
    repeated: int = 0
    runs: int = 0
    equal: int = 0


class Run:
    """One start of train.py, and what of it can be killed."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        command = [str(TRAIN), options.config]
        env = dict(os.environ)
        if options.processes > 1:  # as tools/dist_train.sh does
            command = ['-m', 'clustr_mm.engine.torchrun', *command, str(options.processes)]
            env['MAX_RESTARTS'] = '9'
        command += ['--data-root', options.data_root, '--work-dir', str(folder)]
        command += ['--device', 'cpu', '--resume']
        own = ['default_hooks.logger.interval=1', f'experiment_name=run{time.time_ns()}']
        self.folder = folder
        self.start = time.time()
        self.log = open(folder / 'output.txt', 'a')  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, *command, '--cfg-options', *own, *options.cfg_options],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )

    def ended(self) -> bool:
        return self.process.poll() is not None

    def writing(self) -> bool:
        # A file that an earlier kill left half-written stays until its step is saved again.
        return any(_changed(path) > self.start for path in self.folder.glob('*.pth.part'))

    def kill(self, who: str, chance: random.Random) -> None:
        """Kills one rank, all processes, or the launcher alone."""
        children = sorted(_children(self.process.pid))
        victims = [self.process.pid]
        if who == 'rank' and children:
            victims = [chance.choice(children)]
        elif who == 'all':
            victims = [self.process.pid, *_descendants(self.process.pid)]
        for pid in victims:
            _kill(pid)
        if who == 'launcher':
            # Whoever was orphaned ends by itself or is in the way of the next start.
            for pid in children:
                _kill(pid)

    def wait(self) -> int:
        status = self.process.wait()
        for pid in _session(self.process.pid):  # data-loading processes of a killed run
            _kill(pid)
        self.log.close()
        return status


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    if options.processes == 1 and options.who != ['all']:
        raise UserError('--who is for several --processes; one is killed with all that it started')
    chance = random.Random(options.seed)
    root = Path(options.work_dir)
    if root.exists():
        raise UserError(f'{root} exists; remove it or give another --work-dir')

    alone = root / 'alone'
    alone.mkdir(parents=True)
    start = time.monotonic()
    if (status := Run(options, alone).wait()) != 0:
        raise UserError(f'the run to compare with ended with status {status}: {alone}/output.txt')
    duration, total = time.monotonic() - start, len(_steps(alone))
    print(f'left alone: {duration:.0f} s, {total} steps', flush=True)
    weights, step = _last_weights(alone)

    tally = Tally()
    while tally.kills < options.kills:
        folder = root / f'killed_{tally.runs + 1}'
        folder.mkdir()
        _run_killed(options, folder, total, duration / total, chance, tally)
        tally.runs += 1
        killed, reached = _last_weights(folder)
        equal = reached == step and _equal(weights, killed)
        tally.equal += equal
        print(f'run {tally.runs} ended: weights {"equal" if equal else "DIFFER"}', flush=True)
        if equal:
            shutil.rmtree(folder)
    print(
        f'{tally.kills} kills ({tally.while_writing} while a checkpoint was being written) in '
        f'{tally.runs} runs; steps computed again: {tally.repeated}, which is '
        f'{tally.repeated / max(tally.kills, 1):.1f} a kill; {tally.equal} of {tally.runs} runs '
        'with equal weights'
    )
    if tally.equal < tally.runs:
        raise UserError(f'weights differ: {root}')


def _run_killed(
    options: argparse.Namespace,
    folder: Path,
    total: int,
    pace: float,
    chance: random.Random,
    tally: Tally,
) -> None:
    """Starts, kills and resumes until the run has ended; once kills are enough, lets it end."""
    while True:
        run = Run(options, folder)
        while tally.kills < options.kills:
            writing = chance.random() < options.while_writing
            _wait_for_moment(run, total, pace, writing, chance)
            if run.ended():
                break
            who = options.who[tally.kills % len(options.who)]
            caught = run.writing()
            run.kill(who, chance)
            tally.kills += 1
            tally.while_writing += caught
            place = f'after {len(set(_steps(folder)))} steps' + ', writing' * caught
            print(f'kill {tally.kills}: {who}, {place}, newest {_newest(folder)}', flush=True)
            if who != 'rank':
                break  # torchrun starts a killed rank again, but nobody starts torchrun
        status = run.wait()
        if status == 0:
            steps = _steps(folder)
            tally.repeated += len(steps) - len(set(steps))
            return
        if status > 0 and options.processes == 1:
            raise UserError(f'a run ended with status {status} by itself: {folder}/output.txt')


def _wait_for_moment(
    run: Run, total: int, pace: float, writing: bool, chance: random.Random
) -> None:
    """Waits for a step not far ahead, and a part of one: a shared machine's clock is no measure."""
    target = len(_steps(run.folder)) + chance.randint(0, total // 3)
    while not run.ended() and len(_steps(run.folder)) < target:
        time.sleep(10 * POLL)
    time.sleep(chance.uniform(0, 2 * pace))
    while writing and not run.ended() and not run.writing():  # the next checkpoint
        time.sleep(POLL)


def _steps(folder: Path) -> list[int]:
    """Every training step that a run's logs speak of, in order."""
    lines = [
        line
        for path in sorted(folder.glob('*/vis_data/*.json'), key=lambda each: each.stat().st_mtime)
        if re.fullmatch(r'\d+_\d+\.json', path.name)
        for line in path.read_text().splitlines()
    ]
    found = (re.search(r'"step": (\d+)', line) for line in lines if '"loss"' in line)
    return [int(match[1]) for match in found if match]


def _newest(folder: Path) -> str:
    note = folder / 'last_checkpoint'
    return Path(note.read_text()).name if note.is_file() else 'none'


def _last_weights(folder: Path) -> tuple[dict[str, torch.Tensor], int]:
    """The weights that a run ended with, and its last step."""
    try:
        content = read_checkpoint((folder / 'last_checkpoint').read_text().strip())
    except (OSError, CheckpointError) as error:
        raise UserError(f'{folder} has no last checkpoint: {error}') from error
    return content['state_dict'], content['meta']['iter']


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _changed(path: Path) -> float:
    """When a file was written to; 0 for one that has its own name by now."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _stats() -> Iterator[tuple[int, int, int]]:
    """Process, parent and session of everything that runs."""
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = path.read_text().rpartition(')')[2].split()
        except OSError:
            continue  # gone in the meantime
        if fields[0] != 'Z':
            yield int(path.parent.name), int(fields[1]), int(fields[3])


def _children(pid: int) -> list[int]:
    return [each for each, parent, _ in _stats() if parent == pid]


def _descendants(pid: int) -> list[int]:
    found = _children(pid)
    return found + [each for child in found for each in _descendants(child)]


def _session(leader: int) -> list[int]:
    return [each for each, _, session in _stats() if session == leader]


if __name__ == '__main__':
    sys.exit(run_tool(main))
