"""The examples run as written, and what they print is what they say."""

import re
import runpy
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from clustr_mm.engine import UserError

SCRIPT = Path(__file__).resolve().parents[1] / 'tools' / 'examples' / 'classify_sequences.py'
EXAMPLE = runpy.run_path(str(SCRIPT))


@pytest.fixture(scope='module')
def sounds(tmp_path_factory):
    """Two speakers of tones for the digits 0 and 1, as the data set names its files."""
    folder = tmp_path_factory.mktemp('sounds') / 'recordings'
    folder.mkdir()
    random = np.random.default_rng(0)
    # A low tone and a high one: a steady tone would be nothing but its mean.
    for digit, tones in enumerate(((400, 1600), (800, 3000))):
        for speaker, higher in (('ann', 1.0), ('bob', 1.1)):
            for index in range(15):
                samples = np.arange(random.integers(800, 1600)) / 8000
                tone = np.where(samples < samples.mean(), *tones) * (higher + index / 1000)
                heard = np.sin(2 * np.pi * tone * samples)
                with wave.open(str(folder / f'{digit}_{speaker}_{index}.wav'), 'wb') as file:
                    file.setnchannels(1)
                    file.setsampwidth(2)
                    file.setframerate(8000)
                    file.writeframes((8000 * heard).astype('<i2').tobytes())
    return folder.parent


@pytest.fixture
def words(tmp_path):
    for split, repeats in (('train', 16), ('test', 4)):
        lines = ['sentence\tlabel', 'a fine film\t1', 'a dull film\t0', 'fine , fine\t1']
        (tmp_path / f'{split}.tsv').write_text('\n'.join([lines[0], *lines[1:] * repeats]))
    return tmp_path


@pytest.mark.slow
def test_digits_are_learned_and_split_as_the_data_set_says(sounds):
    command = [sys.executable, str(SCRIPT), 'digits', str(sounds), '--epochs', '25']
    done = subprocess.run([*command, '--seeds', '0', '1'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    heading, *lines = done.stdout.splitlines()
    assert heading == 'digits, official split: 40 to train on, 20 to test on'
    assert [line.split(':')[0].strip() for line in lines] == ['cluster', 'dense', 'mean']
    for line in lines:
        score = re.search(r': (\d+\.\d) ± \d+\.\d % right \(\d+\.\d, \d+\.\d\), \d+ CPU s', line)
        assert float(score[1]) > 90, 'tones are told apart'


def test_speakers_are_left_out_of_training(sounds):
    tasks = list(EXAMPLE['digits'](str(sounds), ['all']))
    assert [task.name for task in tasks] == ['digits, ann left out', 'digits, bob left out']
    assert [(len(task.train), len(task.test)) for task in tasks] == [(30, 30), (30, 30)]
    (one,) = EXAMPLE['digits'](str(sounds), ['bob'])
    trained = {tuple(tokens.flatten().tolist()) for tokens, _ in one.train}
    assert not any(tuple(tokens.flatten().tolist()) in trained for tokens, _ in one.test)


def test_frames_are_mel_bands_less_their_mean(sounds):
    bands = EXAMPLE['mel_bands']()
    assert bands.shape == (101, 40) and bands.min() >= 0 and bands.max() <= 1
    file = sounds / 'recordings' / '0_ann_0.wav'
    frames = EXAMPLE['frames_of'](file, bands)
    with wave.open(str(file)) as sound:
        assert len(frames) == 1 + (sound.getnframes() - 200) // 40
    torch.testing.assert_close(frames.mean(0), torch.zeros(40), rtol=0, atol=1e-4)


def test_words_are_numbered_and_those_seen_once_are_one(words):
    (task,) = EXAMPLE['sentences'](str(words), [])
    assert (len(task.train), len(task.test), task.words) == (48, 12, 6)
    with open(words / 'test.tsv', 'a') as file:
        file.write('\nnever seen film\t0')
    (task,) = EXAMPLE['sentences'](str(words), [])
    tokens, label = task.test[-1]
    assert tokens.tolist()[:2] == [0, 0] and tokens[2] > 0 and label == 0


@pytest.mark.parametrize('attention', ['cluster', 'dense', 'mean'])
def test_a_class_does_not_depend_on_padding_and_batch_mates(attention, words):
    torch.manual_seed(0)
    (task,) = EXAMPLE['sentences'](str(words), [])
    model = EXAMPLE['Classifier'](task, attention).double().eval()
    sequences = [(torch.randint(task.words, (length,)), 0) for length in (17, 4, 30, 9)]
    tokens, mask, _ = EXAMPLE['batch_of'](sequences)
    together = model(tokens.masked_fill(~mask, task.words - 1), mask)
    for row, (alone, _) in enumerate(sequences):
        own = model(alone[None], torch.ones(1, len(alone)).bool())[0]
        torch.testing.assert_close(together[row], own, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['digits', '{sounds}', '--epochs', '0'], '--epochs is 0; use at least 1'),
        (['digits', '{sounds}', '--seeds', '-1'], '--seeds has -1'),
        (['digits', '{sounds}', '--leave-out', 'eve'], 'eve: the speakers are ann, bob'),
        (['digits', '{words}'], 'has no DIGIT_SPEAKER_INDEX.wav'),
        (['sentences', '{sounds}'], 'train.tsv does not exist'),
        (['sentences', '{words}', '--leave-out', 'ann'], 'sentences have no speakers'),
    ],
)
def test_mistakes_are_named(arguments, message, sounds, words):
    places = dict(sounds=sounds, words=words)
    with pytest.raises(UserError, match=message):
        EXAMPLE['main']([each.format(**places) for each in arguments])


def test_a_file_that_is_no_recording_is_named(tmp_path):
    (tmp_path / '0_ann_0.wav').write_text('no sound')
    with pytest.raises(UserError, match='0_ann_0.wav is no WAV file'):
        EXAMPLE['main'](['digits', str(tmp_path)])
