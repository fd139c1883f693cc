"""A run's checkpoints: never none, and the newest whole one is found."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_run import VALIDATION, make_config, run

from clustr_mm.engine import UserError
from clustr_mm.engine.checkpoints import newest_checkpoint
from clustr_mm.engine.runner import ToolRunner


@pytest.fixture
def trained(tmp_path):
    """A folder with iter_1.pth to iter_12.pth, oldest first."""
    run(make_config(tmp_path, epochs=False))
    for step in range(1, 13):
        os.utime(tmp_path / f'iter_{step}.pth', (step, step))
    return tmp_path


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    weights = torch.load(path, weights_only=False)['state_dict']['layer.weight'].numpy().tobytes()
    changed = {
        'empty': b'',
        'cut': content[: len(content) // 2],
        'flipped': content.replace(weights, bytes([weights[0] ^ 1]) + weights[1:]),
        'text': b'hello',
        'pickle': b'cos\nsystem\n(S"touch ran"\ntR.',
    }[how]
    assert changed != content
    stat = path.stat()
    path.write_bytes(changed)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize('how', ['empty', 'cut', 'flipped', 'text', 'pickle'])
def test_a_broken_newest_is_named_and_the_one_before_taken(trained, how, caplog, monkeypatch):
    monkeypatch.chdir(trained)
    damage(trained / 'iter_12.pth', how)
    runner = run(make_config(trained, epochs=False, resume=True, log_level='INFO'))
    log = Path(runner._log_dir, f'{runner.timestamp}.log').read_text()
    assert 'resumed epoch: 0, iter: 11' in log
    assert len([line for line in log.splitlines() if 'passed over: ' in line]) == 1
    assert 'iter_12.pth' in log.partition('passed over: ')[2].splitlines()[0]
    assert not (trained / 'ran').exists()


def test_newest_is_by_time_and_not_by_number(trained):
    # A folder can hold a longer run's older checkpoints, and a note that a kill came before.
    os.utime(trained / 'iter_3.pth', (99, 99))
    (trained / 'last_checkpoint').write_text('')
    (trained / 'best_acc_iter_3.pth').write_bytes(b'')
    (trained / 'iter_13.pth.part').write_bytes(b'')
    assert newest_checkpoint(str(trained)) == str(trained / 'iter_3.pth')


def test_in_a_copied_folder_the_note_is_believed(trained):
    for step in range(1, 13):  # copied in the other order
        os.utime(trained / f'iter_{step}.pth', (99 - step, 99 - step))
    assert newest_checkpoint(str(trained)) == str(trained / 'iter_12.pth')
    (trained / 'last_checkpoint').write_text(str(trained / 'iter_5.pth'))
    # A kill came between this one and its note.
    os.utime(trained / 'iter_6.pth', (999, 999))
    assert newest_checkpoint(str(trained)) == str(trained / 'iter_6.pth')


def test_a_copied_folder_goes_on_from_its_own(trained, tmp_path_factory):
    other = tmp_path_factory.mktemp('copy') / 'copied'
    shutil.copytree(trained, other)
    (other / 'last_checkpoint').write_text(str(trained / 'iter_5.pth'))  # the first one went on
    for step in range(6, 13):
        (other / f'iter_{step}.pth').unlink()
    assert newest_checkpoint(str(other)) == str(other / 'iter_5.pth')


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    (tmp_path / 'iter_7.pth.part').write_bytes(b'half')
    run(make_config(tmp_path, epochs=False))
    assert not list(tmp_path.glob('*.part'))


def test_nothing_yet_is_a_start_and_nothing_whole_is_an_error(tmp_path):
    assert run(make_config(tmp_path / 'new', epochs=False, resume=True)).iter == 12
    folder = tmp_path / 'broken'
    folder.mkdir()
    (folder / 'iter_1.pth').write_bytes(b'')
    with pytest.raises(UserError, match='no whole checkpoint in .*broken: iter_1.pth'):
        run(make_config(folder, epochs=False, resume=True))
    (folder / 'iter_1.pth').unlink()
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_7.pth'))
    with pytest.raises(UserError, match='iter_7.pth is not there'):
        newest_checkpoint(str(folder))


def test_the_old_one_goes_when_the_new_one_is_there(tmp_path, monkeypatch):
    whole = ToolRunner.save_checkpoint

    def fails_late(self, out_dir, filename, *args, **kwargs):
        if filename == 'iter_5.pth.part':
            raise KeyboardInterrupt  # as a kill does, it comes in between
        whole(self, out_dir, filename, *args, **kwargs)

    monkeypatch.setattr(ToolRunner, 'save_checkpoint', fails_late)
    with pytest.raises(KeyboardInterrupt):
        run(make_config(tmp_path, epochs=False, saving=dict(max_keep_ckpts=1)))
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_4.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_4.pth')
    monkeypatch.undo()
    run(make_config(tmp_path, epochs=False, saving=dict(max_keep_ckpts=1), resume=True))
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_12.pth']


def test_the_old_best_goes_when_the_new_one_is_there(tmp_path, monkeypatch):
    whole, seen = ToolRunner.save_checkpoint, []

    def looks(self, out_dir, filename, *args, **kwargs):
        if filename.startswith('best_'):
            seen.append(len(list(tmp_path.glob('best_*.pth'))))
        whole(self, out_dir, filename, *args, **kwargs)

    monkeypatch.setattr(ToolRunner, 'save_checkpoint', looks)
    saving = dict(save_best='acc', rule='greater')
    run(make_config(tmp_path, epochs=True, saving=saving, **VALIDATION))
    assert seen == [0, 1, 1]
    assert [path.name for path in tmp_path.glob('best_*.pth')] == ['best_acc_iter_12.pth']


def test_another_runs_best_stays_where_it_is(tmp_path):
    saving = dict(save_best='acc', rule='greater')
    run(make_config(tmp_path / 'first', epochs=True, saving=saving, **VALIDATION))
    (best,) = (tmp_path / 'first').glob('best_*.pth')
    changes = {'train_cfg.max_epochs': 4, **VALIDATION}
    last = str(tmp_path / 'first' / 'iter_12.pth')
    run(make_config(tmp_path / 'b', True, saving, resume=True, load_from=last, **changes))
    assert best.is_file()
    assert len(list((tmp_path / 'b').glob('best_*.pth'))) == 1


FULL_DISK = """
import sys
from toy_run import make_config, run
from clustr_mm.engine import run_tool
sys.exit(run_tool(lambda _: run(make_config(sys.argv[1], epochs=False, resume=True))))
"""


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 10, 6 << 10))


def test_a_file_system_that_takes_no_more_ends_in_one_line(trained):
    # From here on no file can grow beyond 6 kB, as on a disk without room.
    before = (trained / 'iter_11.pth').read_bytes()
    assert len(before) > 6 << 10
    (trained / 'iter_12.pth').unlink()
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', FULL_DISK, str(trained)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit_file_size,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert done.returncode == 1, done.stderr
    assert len(errors) == 1
    assert 'Traceback' not in done.stderr
    assert 'iter_12.pth' in errors[0] and 'iter_11.pth, which is whole' in errors[0]
    assert (trained / 'iter_11.pth').read_bytes() == before
    assert not list(trained.glob('*.part'))


def test_a_score_that_no_validation_gives_is_named_with_those_it_gives(tmp_path):
    cfg = make_config(tmp_path, epochs=True, saving=dict(save_best='coco/segm_mAP'), **VALIDATION)
    with pytest.raises(UserError, match="save_best is 'coco/segm_mAP'.* to one of acc$"):
        run(cfg)
