"""Episodes on disk: what is written comes back, and damage has a name."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from instructvla_ros.data.episodes import Dataset, Episode, Frames, Meta, Writer
from instructvla_ros.errors import DataError

META = Meta('demo', 'fr3', 0.1, {'third_person': (64, 48)})


def make(name: str = 'a', frames: int = 5, seed: int = 0) -> Episode:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 255, (frames, 48, 64, 3), np.uint8)
    return Episode(
        name,
        'pick up the red cube',
        0.1,
        np.arange(frames) * 100_000_000,
        rng.normal(size=(frames, 8)),
        rng.normal(size=(frames, 7)),
        np.zeros((frames, 7)),
        rng.normal(size=(frames, 7)),
        {'third_person': Frames.encode(pictures, quality=0)},
        annotations={'features': {'move_primitive': ['stop'] * frames}},
        success=True,
        info={'seed': seed},
        extras={'chunks': rng.normal(size=(frames, 8, 7))},
    )


def test_round_trip(tmp_path):
    episode = make()
    with Writer(tmp_path / 'd', META) as writer:
        writer.add(episode)
    dataset = Dataset.open(tmp_path / 'd')
    assert dataset.meta == META and len(dataset) == 1 and dataset.frames == 5
    back = dataset.read('a')
    for name in ('stamps_ns', 'proprio', 'q', 'dq', 'actions'):
        np.testing.assert_array_equal(getattr(back, name), getattr(episode, name))
    np.testing.assert_array_equal(back.views['third_person'][3], episode.views['third_person'][3])
    np.testing.assert_array_equal(back.extras['chunks'], episode.extras['chunks'])
    assert back.annotations == episode.annotations and back.info == {'seed': 0} and back.success is True


def test_jpeg_is_close():
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (48, 1, 3))
    frames = Frames.encode([ramp])
    assert np.abs(frames[0].astype(int) - ramp).max() < 8 and len(frames[0:1]) == 1


def test_goes_on_after_a_kill(tmp_path):
    with Writer(tmp_path, META) as writer:
        writer.add(make('a'))
        writer.add(make('b'))
    index = tmp_path / 'index.jsonl'
    index.write_bytes(index.read_bytes()[:-20])
    assert len(Dataset.open(tmp_path)) == 1
    writer = Writer(tmp_path, META)
    assert writer.has('a') and not writer.has('b')
    writer.add(make('b'))
    assert [e.id for e in Dataset.open(tmp_path).index] == ['a', 'b']


def test_refuses_another_dataset(tmp_path):
    Writer(tmp_path, META)
    with pytest.raises(DataError, match='step_period'):
        Writer(tmp_path, replace(META, step_period=0.2))


@pytest.mark.parametrize('field', ['proprio', 'actions', 'q'])
def test_not_a_number_is_named(field):
    episode = make()
    value = getattr(episode, field).copy()
    value[2, 0] = np.nan
    with pytest.raises(DataError, match=f'{field} is not finite in frame 2'):
        replace(episode, **{field: value})


def test_lengths_must_agree():
    with pytest.raises(DataError, match='actions must be'):
        replace(make(), actions=np.zeros((4, 7)))
    with pytest.raises(DataError, match="'third_person' has 2 pictures"):
        replace(make(), views={'third_person': make(frames=2).views['third_person']})
    with pytest.raises(DataError, match='id'):
        replace(make(), id='../evil')


def test_damage_is_named(tmp_path):
    with Writer(tmp_path, META) as writer:
        writer.add(make('a'))
    file = tmp_path / 'episodes' / 'a.npz'
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match='damaged'):
        Dataset.open(tmp_path).read(0)
    file.unlink()
    with pytest.raises(DataError, match='missing'):
        Dataset.open(tmp_path).read(0)
    (tmp_path / 'meta.json').write_text(json.dumps({'format': 'other/9'}))
    with pytest.raises(DataError, match='other/9'):
        Dataset.open(tmp_path)
    with pytest.raises(DataError, match='not a dataset'):
        Dataset.open(tmp_path / 'nowhere')


def test_full_disk_keeps_what_is_there(tmp_path, monkeypatch):
    writer = Writer(tmp_path, META)
    writer.add(make('a'))

    def full(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('pathlib.Path.write_bytes', full)
    with pytest.raises(DataError, match='No space left'):
        writer.add(make('b'))
    monkeypatch.undo()
    assert [e.id for e in Dataset.open(tmp_path).index] == ['a']
    writer.add(make('b'))
    assert len(Dataset.open(tmp_path)) == 2


def test_broken_picture_is_an_error():
    with pytest.raises(DataError, match='picture 0'):
        Frames([b'not a picture'])[0]
