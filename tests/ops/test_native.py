"""The compiled backend: its results where arithmetic is exact, and its making."""

import logging
import os
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers import assert_invariants, some_counts

from clustr_mm.ops import dispatch
from clustr_mm.ops.clustering import dpc_knn, native
from clustr_mm.ops.clustering.native import can_run_native, dpc_knn_native
from clustr_mm.ops.clustering.reference import dpc_knn_reference

REASON = can_run_native(torch.zeros(1, 1, 1))
needs_library = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def grid_tokens(batch: int, n: int, channels: int, seed: int = 0) -> torch.Tensor:
    """Normal tokens in steps of 1/32: float32 holds all their distances exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, n, channels, generator=generator).mul(32).round().div(32)


def assert_equals_reference(x: torch.Tensor, counts: list[int], k: int) -> None:
    expected = dpc_knn_reference(x.double(), counts, k)
    for count, a, b in zip(counts, expected, dpc_knn_native(x, counts, k), strict=True):
        assert torch.equal(a, b), f'M = {count}'


@needs_library
@pytest.mark.parametrize(
    ('batch', 'n', 'channels'),
    [
        *[(2, n, 8) for n in (1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 63)],
        (4, 196, 256),
        (3, 333, 3),  # no whole vector of channels
        (2, 255, 70),  # and some beside whole vectors
        (1, 1501, 1),
        (1, 1700, 64),  # many blocks of tokens
    ],
)
def test_equals_reference_where_arithmetic_is_exact(batch, n, channels):
    x = grid_tokens(batch, n, channels, seed=n)
    assert_equals_reference(x, some_counts(n), min(5, n))


@needs_library
@pytest.mark.parametrize('k', [1, 2, 7, 8, 9, 16, 40, 150])
def test_equals_reference_for_every_k(k):
    assert_equals_reference(grid_tokens(2, 150, 16), [75, 1, 149, 150], k)


def photograph_like_tokens(n: int, channels: int, steps: int = 8) -> torch.Tensor:
    """Tokens (1, n, C) in 4 directions, on a grid: sketches hold all there is to know of them."""
    generator = torch.Generator().manual_seed(n)
    there = torch.randn(1, n, 4, generator=generator).mul(steps).round()
    return there @ torch.randint(-3, 4, (4, channels), generator=generator).float() / 8


@needs_library
@pytest.mark.parametrize(
    ('n', 'channels', 'k', 'steps'),
    [
        (2100, 24, 5, 8),
        (2003, 19, 1, 8),
        (2100, 64, 40, 8),
        (2500, 3, 8, 64),
        (2100, 16, 5, 1),  # many tokens coincide, and nearly all distances are tied
    ],
)
def test_equals_reference_where_most_distances_are_left_out(n, channels, k, steps):
    assert_equals_reference(photograph_like_tokens(n, channels, steps), [n // 64, n // 4], k)


@needs_library
def test_what_is_not_finite_among_many_tokens():
    x = photograph_like_tokens(2100, 16).expand(2, -1, -1).clone()
    expected = dpc_knn_native(x, [30], 5)[0]
    for value in (float('nan'), float('inf'), 3e38, 1e19):
        x[1, 7, 3] = value
        (labels,) = dpc_knn_native(x, [30], 5)
        assert torch.equal(labels[0], expected[0])
        assert labels[1].unique().tolist() == list(range(30))


@needs_library
@pytest.mark.parametrize('threads', [2, 3, 7])
@pytest.mark.parametrize(('batch', 'n'), [(1, 100), (1, 1000), (3, 196), (5, 400), (2, 2100)])
def test_the_number_of_threads_changes_nothing(batch, n, threads):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(batch, n, 32, generator=generator)
    x[..., 4:] /= 16  # few directions matter, as in photographs
    x[:, ::3] = x[:, :1]  # ties
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = dpc_knn_native(x, [n // 4, n], 5)
        torch.set_num_threads(threads)
        found = dpc_knn_native(x, [n // 4, n], 5)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@needs_library
@pytest.mark.parametrize('n', [40, 700])
def test_coinciding_tokens_are_at_distance_0(n):
    # No grid: sums of 100 channels are rounded, but alike.
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(2, n // 3, 100, generator=generator)[:, torch.arange(n) % (n // 3)]
    (order,) = dpc_knn_native(x, [n], 5)
    for m in (1, n // 10, n // 3, n // 2, n - 1):
        (labels,) = dpc_knn_native(x, [m], 5)
        assert_invariants(x, labels, order, m, 1e-5)


@needs_library
def test_equal_tokens_are_ranked_by_index():
    (order, labels) = dpc_knn_native(torch.randn(2, 1, 24).expand(-1, 600, -1), [600, 30], 5)
    assert torch.equal(order, torch.arange(600).expand(2, -1))
    assert torch.equal(labels[:, :30], torch.arange(30).expand(2, -1))
    assert (labels[:, 30:] == 0).all()


@needs_library
@pytest.mark.parametrize(('n', 'offset'), [(784, 0.0), (1200, 30.0)])
def test_agrees_with_float64_for_nearly_all_tokens(n, offset):
    x = torch.randn(1, n, 64, generator=torch.Generator().manual_seed(n)) + offset
    (found,) = dpc_knn_native(x, [n // 16], 5)
    same = found == dpc_knn(x.double(), n // 16, backend='reference')
    assert same.double().mean() > 0.98


@needs_library
def test_channels_that_are_no_last_in_memory():
    x = grid_tokens(2, 130, 16)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(dpc_knn_native(x, [20], 5)[0], dpc_knn_native(turned, [20], 5)[0])


@needs_library
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf'), 3e38])
def test_what_is_not_finite_stays_in_its_image(value):
    x = grid_tokens(3, 300, 16)
    expected = dpc_knn_native(x, [30, 300], 5)
    spoilt = x.clone()
    spoilt[1, 7, 3] = spoilt[1, 200] = value
    for m, a, b in zip([30, 300], expected, dpc_knn_native(spoilt, [30, 300], 5), strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
        assert b[1].unique().tolist() == list(range(m))
    everywhere = torch.full((1, 50, 8), value)
    assert dpc_knn_native(everywhere, [50], 5)[0].unique().tolist() == list(range(50))


@needs_library
def test_is_one_operator_for_tracing(monkeypatch):
    monkeypatch.setattr(native, '_loaded', None)  # a process that traces first

    def double_labels(x):
        return dpc_knn(x, [10, 40])[1] * 2

    x = grid_tokens(2, 90, 8)
    traced = torch.compile(double_labels, backend='eager', fullgraph=True)
    assert torch.equal(traced(x), double_labels(x))


@needs_library
def test_dpc_knn_takes_it_for_float32_on_a_cpu():
    x = torch.randn(1, 400, 24, generator=torch.Generator().manual_seed(5))
    assert torch.equal(dpc_knn(x, 50), dpc_knn(x, 50, backend='native'))
    assert torch.equal(dpc_knn(x.double(), 50), dpc_knn(x.double(), 50, backend='tiled'))


def test_other_tokens_are_refused_by_name():
    with pytest.raises(ValueError, match=r"not torch.float64 on cpu; use 'tiled'"):
        dpc_knn(torch.zeros(1, 9, 4, dtype=torch.float64), 3, backend='native')


# ------------------------------------------------------------------------------- making the library


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A process that has loaded nothing yet, an empty cache, and a source that compiles fast."""
    source = tmp_path / 'some source.cpp'
    source.write_text('extern "C" int clustr_dpc_knn() { return 7; }\n')
    monkeypatch.setattr(native, '_SOURCE', source)
    monkeypatch.setattr(native, '_loaded', None)
    monkeypatch.setenv('CLUSTR_MM_CACHE', str(tmp_path / 'a cache' / 'below'))
    return tmp_path


def compiler_script(folder: Path, lines: str) -> str:
    """A compiler's command whose path has a blank."""
    script = folder / 'my compiler'
    script.write_text('#!/bin/sh\n' + textwrap.dedent(lines))
    script.chmod(0o755)
    return f"'{script}'"


def make_and_call() -> int:
    return native._build_and_load()(None, 1, 1, 1, None, 1, 1, 1, None)


def libraries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*') if path.suffix == '.so')


@needs_library
def test_is_compiled_once(workshop, monkeypatch):
    log = workshop / 'log'
    command = compiler_script(workshop, f'echo >> "{log}"\nexec g++ "$@"\n')
    monkeypatch.setenv('CXX', command)
    assert make_and_call() == 7
    assert make_and_call() == 7
    assert len(log.read_text()) == 2, 'compiled and linked'
    assert os.listdir(workshop / 'a cache' / 'below') == [libraries(workshop)[0].name]
    monkeypatch.setenv('CXX', command + ' -g')
    make_and_call()
    assert len(libraries(workshop)) == 2, 'another command makes another library'


@needs_library
def test_built_for_avx2_alone_it_is_the_reference_too(tmp_path, monkeypatch):
    monkeypatch.setattr(native, '_loaded', None)
    monkeypatch.setenv('CLUSTR_MM_CACHE', str(tmp_path))
    monkeypatch.setenv('CXX', 'g++ -mno-avx512f')  # what -march=native knows of it, goes
    for k in (1, 2, 5, 9, 40):
        assert_equals_reference(grid_tokens(2, 333, 24, seed=k), [1, 20, 83, 333], k)
    assert_equals_reference(photograph_like_tokens(2100, 24), [32, 525], 5)
    x = torch.randn(1, 600, 64, generator=torch.Generator().manual_seed(0))
    x[:, ::3] = x[:, :1]  # ties
    exact = dpc_knn(x.double(), [37, 150], backend='reference')
    assert torch.equal(torch.stack(exact), dpc_knn_native(x, [37, 150], 5))
    assert len(libraries(tmp_path)) == 1


@pytest.mark.slow
@needs_library
def test_several_processes_compile_at_once(tmp_path):
    program = 'import torch; from clustr_mm import dpc_knn; print(dpc_knn(torch.eye(9)[None], 3))'
    environment = {**os.environ, 'CLUSTR_MM_CACHE': str(tmp_path), 'OMP_NUM_THREADS': '1'}
    runs = [
        subprocess.Popen([sys.executable, '-c', program], env=environment, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = {run.communicate()[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert len(outputs) == 1 and b'tensor' in outputs.pop()
    assert [path.suffix for path in tmp_path.iterdir()] == ['.so'], 'and nothing is left over'


@needs_library
def test_without_openmp_it_runs_on_one_thread_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv('CLUSTR_MM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(native, '_loaded', None)
    refuse = 'case "$*" in *-fopenmp*) echo "error: what is OpenMP?" >&2; exit 1;; esac\n'
    monkeypatch.setenv('CXX', compiler_script(tmp_path, refuse + 'exec g++ "$@"\n'))
    x = grid_tokens(2, 300, 8)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_equals_reference(x, [20, 100], 5)
    finally:
        torch.set_num_threads(before)
    assert 'clustering on one thread: ' in caplog.text and 'what is OpenMP?' in caplog.text


@needs_library
def test_with_openmp_nothing_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv('CLUSTR_MM_CACHE', str(tmp_path))
    monkeypatch.setattr(native, '_loaded', None)
    assert can_run_native(torch.zeros(1, 1, 1)) is None
    assert not caplog.records


@needs_library
def test_a_damaged_library_is_made_again(workshop, monkeypatch):
    monkeypatch.setenv('CLUSTR_MM_CACHE', str(workshop / 'whole'))
    assert make_and_call() == 7
    (whole,) = libraries(workshop / 'whole')
    monkeypatch.setenv('CLUSTR_MM_CACHE', str(workshop / 'damaged'))
    (workshop / 'damaged').mkdir()
    damaged = workshop / 'damaged' / whole.name
    for content in (b'', whole.read_bytes()[:100], whole.read_bytes()[:-1]):
        damaged.unlink(missing_ok=True)  # else what is loaded would change
        damaged.write_bytes(content)
        assert make_and_call() == 7
        assert libraries(workshop / 'damaged') == [damaged]
        assert damaged.read_bytes() == whole.read_bytes()


@needs_library
def test_what_cannot_be_loaded_here_is_not_compiled_again(workshop, monkeypatch, caplog):
    # As with another OpenMP runtime than the compiler's.
    native._SOURCE.write_text(
        """
        extern "C" int no_such_runtime();
        #ifdef _OPENMP
        extern "C" int clustr_dpc_knn() { return no_such_runtime(); }
        #else
        extern "C" int clustr_dpc_knn() { return 7; }
        #endif
        """
    )
    log = workshop / 'log'
    monkeypatch.setenv('CXX', compiler_script(workshop, f'echo >> "{log}"\nexec g++ "$@"\n'))
    for _ in range(2):  # two processes
        assert make_and_call() == 7
        assert len(log.read_text()) == 4, 'compiled and linked, with OpenMP and without'
        assert len(libraries(workshop)) == 2
        assert 'on one thread: compiled code cannot be kept in' in caplog.text
        assert 'undefined symbol: no_such_runtime' in caplog.text
        caplog.clear()


@needs_library
@pytest.mark.parametrize('home', ['a file', 'a folder that nothing can be loaded from'])
def test_an_unusable_home_leaves_the_temporary_folder(workshop, monkeypatch, home):
    monkeypatch.delenv('CLUSTR_MM_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(workshop / 'home'))
    monkeypatch.setattr('tempfile.tempdir', str(workshop / 'temporary'))
    (workshop / 'temporary').mkdir()
    if home == 'a file':
        (workshop / 'home').touch()
    else:
        bind = native._bind

        def noexec(library):
            if 'home' in library.parts:
                raise OSError('failed to map segment from shared object')
            return bind(library)

        monkeypatch.setattr(native, '_bind', noexec)
    assert make_and_call() == 7
    (library,) = libraries(workshop / 'temporary')
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700


def test_a_folder_that_others_can_write_to_is_not_used(workshop, monkeypatch):
    folder = workshop / 'open to all'
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv('CLUSTR_MM_CACHE', str(folder))
    if shutil.which('g++'):
        monkeypatch.setenv('CXX', 'g++')
        assert 'can be written to by every user' in can_run_native(torch.zeros(1, 1, 1))


@pytest.mark.parametrize(
    ('compiler', 'message'),
    [
        ('/no/such/compiler -O2', "CXX is '/no/such/compiler -O2', which is no command here"),
        ('false', 'false could not compile'),
        ('g++ "-O2', "CXX is 'g++ \"-O2', which is no command here"),
        ('sh -c "echo a.h: fatal error: no such file >&2; exit 1"', 'fatal error: no such file'),
    ],
)
def test_without_a_compiler_clustering_goes_on_and_says_so(
    workshop, monkeypatch, caplog, compiler, message
):
    monkeypatch.setenv('CXX', compiler)
    monkeypatch.setattr(dispatch, '_said', set())
    x = grid_tokens(1, 60, 8)
    with caplog.at_level(logging.WARNING):
        labels = dpc_knn(x, 10)
        dpc_knn(x, 20)
    assert torch.equal(labels, dpc_knn(x, 10, backend='tiled'))
    assert len(caplog.records) == 1 and message in caplog.text
    with pytest.raises(ValueError, match="backend 'native' cannot run"):
        dpc_knn(x, 10, backend='native')


def test_no_compiler_at_all_is_named(workshop, monkeypatch):
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setenv('PATH', str(workshop))
    reason = can_run_native(torch.zeros(1, 1, 1))
    assert reason == 'there is no C++ compiler (g++, c++, clang++); install one, or set CXX to it'


@pytest.mark.parametrize('trouble', ['no such user', 'no source', 'no folder'])
def test_without_what_it_needs_clustering_goes_on(workshop, monkeypatch, caplog, trouble):
    monkeypatch.setattr(dispatch, '_said', set())
    if trouble == 'no such user':
        monkeypatch.setenv('CLUSTR_MM_CACHE', '~no-such-user/cache')
        message = "CLUSTR_MM_CACHE is '~no-such-user/cache'"
    elif trouble == 'no source':
        native._SOURCE.unlink()
        message = 'some source.cpp'
    else:
        monkeypatch.delenv('CLUSTR_MM_CACHE')
        monkeypatch.setenv('XDG_CACHE_HOME', '/proc/nowhere')
        monkeypatch.setattr('tempfile.tempdir', None)
        monkeypatch.setattr('tempfile._candidate_tempdir_list', list)
        message = 'compiled code cannot be kept in /proc/nowhere/clustr_mm'
    x = grid_tokens(1, 60, 8)
    assert torch.equal(dpc_knn(x, 10), dpc_knn(x, 10, backend='tiled'))
    assert len(caplog.records) == 1 and message in caplog.text
