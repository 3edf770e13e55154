"""VLA-IT annotation files and general conversations: read as written, nothing wrong passes unnamed."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from instructvla_ros.data import jsonscan, vla_it
from instructvla_ros.data.conversations import Conversations
from instructvla_ros.data.episodes import Dataset, Episode, Frames, Meta, Writer
from instructvla_ros.data.vla_it import Annotations
from instructvla_ros.errors import DataError


def entry(n: int = 0, frames: int = 3) -> dict[str, Any]:
    return {
        'features': {'move_primitive': [f'move up {n} {k}' for k in range(frames)]},
        'alt_instruction': {
            'Caption': f'Scène {n}: a "cup" {{and}} a [bowl].',
            'QA': [{'question': f'What? {n}', 'answer': 'A cup. \\ ☕'}],
            'CR': [],
            'CC': [{'question': 'I am thirsty.', 'answer': 'Then the cup.'}],
        },
    }


CONTENT: dict[str, Any] = {
    '/data/bridge_out_1/train.npy': {'0': entry(0), '17': {'features': {'move_primitive': ['stop']}}},
    'gs://fractal_ü_2': {'3': entry(3), '4': {'alt_instruction': {'Caption': 'x'}}, '5': {}},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / 'bridge_instruction.json'
    path.write_text(json.dumps(CONTENT, ensure_ascii=False, indent=1), encoding='utf-8')
    return path


def test_entries_come_back_as_they_were(file: Path) -> None:
    found = Annotations.open(file)
    assert list(found.keys()) == [(f, e) for f, group in CONTENT.items() for e in group]
    for group, episodes in CONTENT.items():
        for name, value in episodes.items():
            assert found.entry(group, name) == value
    assert found.entry('/data/bridge_out_1/train.npy', 17) == CONTENT['/data/bridge_out_1/train.npy']['17']
    assert found.entry('gs://fractal_ü_2', '99') is None and found.entry('nowhere', '0') is None


@pytest.mark.parametrize('block', [1, 7, 64])
@pytest.mark.parametrize('ascii_only', [True, False])
def test_windows_of_any_size(file: Path, monkeypatch: pytest.MonkeyPatch, block: int, ascii_only: bool) -> None:
    file.write_text(json.dumps(CONTENT, ensure_ascii=ascii_only), encoding='utf-8')
    monkeypatch.setattr(jsonscan, 'BLOCK', block)
    found = Annotations.open(file)
    assert {g: {e: found.entry(g, e) for (f, e) in found.keys() if f == g} for g in CONTENT} == CONTENT


def test_look_up_by_the_key_of_the_reference(file: Path) -> None:
    found = Annotations.open(file)
    labels = found.lookup('/data/bridge_out_1/train.npy_0_2')
    assert labels is not None and labels.primitive == 'move up 0 2'
    assert labels.alt_instruction == entry(0)['alt_instruction']
    only_moves = found.lookup('/data/bridge_out_1/train.npy_17_0')
    assert only_moves is not None and (only_moves.primitive, only_moves.alt_instruction) == ('stop', None)
    only_texts = found.lookup('gs://fractal_ü_2_4_250')
    assert only_texts is not None and only_texts.primitive is None
    for missing in ('/data/bridge_out_1/train.npy_0_3', '/data/bridge_out_1/train.npy_1_0', 'elsewhere_0_0'):
        assert found.lookup(missing) is None
    for odd in ('train.npy', 'a_b_c', '_1'):
        with pytest.raises(DataError, match='annotation key'):
            found.lookup(odd)


def test_goes_to_worker_processes(file: Path) -> None:
    found = pickle.loads(pickle.dumps(Annotations.open(file)))
    assert found.entry('gs://fractal_ü_2', '3') == entry(3)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / 'large.json'
    vla_it.write(path, ((f'file_{k // 50}', k, entry(k, frames=200)) for k in range(2500)))
    size = path.stat().st_size
    assert size > 8e6
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        jsonscan_block = jsonscan.BLOCK
        jsonscan.BLOCK = 1 << 18
        found = Annotations.open(path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        jsonscan.BLOCK = jsonscan_block
        tracemalloc.stop()
    assert len(found) == 2500 and found.entry('file_49', 2499) == entry(2499, frames=200)
    assert kept - before < size / 5 and peak - before < size / 3


@pytest.mark.parametrize(
    ('bad', 'words'),
    [
        ([], 'object'),
        ({'features': {'move_primitive': 'stop'}}, 'move_primitive'),
        ({'features': {'move_primitive': ['stop', 5]}}, 'frame 1'),
        ({'alt_instruction': {'Caption': {}}}, 'Caption'),
        ({'alt_instruction': {'CC': [{'question': 'a', 'reply': 'b'}]}}, 'CC'),
        ({'alt_instruction': ['Caption']}, 'alt_instruction'),
    ],
)
def test_another_form_is_refused_by_name(tmp_path: Path, bad: Any, words: str) -> None:
    path = tmp_path / 'a.json'
    path.write_text(json.dumps({'f.npy': {'1': entry(), '2': bad, '3': entry()}}))
    with pytest.raises(DataError, match=rf'a\.json: f\.npy / 2: .*{words}'):
        Annotations.open(path)
    lenient = Annotations.open(path, strict=False)
    assert [k[1] for k in lenient.keys()] == ['1', '3'] and len(lenient.problems) == 1
    with pytest.raises(DataError, match='f.npy / 2'):
        vla_it.write(tmp_path / 'out.json', [('f.npy', '2', bad)])
    assert not (tmp_path / 'out.json').exists() and not list(tmp_path.glob('*.part'))


@pytest.mark.parametrize(
    'text',
    [
        '', '[]', '{"f": 3}', '{"f": {"1": {}', '{"f": {"1": {"features": {"move_primitive": ["a"]}}',
        '{"f": {"1": {}}} x',
        '{"f": {"1": {} "2": {}}}', '{"f": {"1": {},}}', '{3: {}}', '{"f": {"1": {"a": tru}}}', 'not json',
    ],
)  # fmt: skip
def test_damage_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    path = tmp_path / 'a.json'
    path.write_text(text)
    with pytest.raises(DataError, match=r'a\.json is not valid at byte \d+'):
        Annotations.open(path, strict=False)


def test_cut_off_file_is_refused_wherever_it_ends(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes().rstrip()
    for end in range(0, len(data), 23):
        (tmp_path / 'cut.json').write_bytes(data[:end])
        with pytest.raises(DataError, match='cut.json'):
            Annotations.open(tmp_path / 'cut.json')


def test_twice_the_same_episode_is_named(tmp_path: Path) -> None:
    path = tmp_path / 'a.json'
    path.write_text('{"f": {"1": {}, "1": {}}}')
    with pytest.raises(DataError, match='twice'):
        Annotations.open(path)
    with pytest.raises(DataError, match='twice'):
        vla_it.write(path, [('f', '1', {}), ('f', 1, {})])
    with pytest.raises(DataError, match='together'):
        vla_it.write(path, [('f', '1', {}), ('g', '1', {}), ('f', '2', {})])


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='none.json'):
        Annotations.open(tmp_path / 'none.json')


def episode(name: str, annotations: dict[str, Any], t: int = 3) -> Episode:
    frames = Frames.encode([np.zeros((8, 8, 3), np.uint8)] * t)
    zeros = np.zeros((t, 7))
    return Episode(name, 'lift the cup', 0.2, np.arange(t, dtype=np.int64), np.zeros((t, 8)), zeros, zeros, zeros,
                   {'base': frames}, annotations=annotations)  # fmt: skip


def test_a_dataset_writes_and_takes_annotations(tmp_path: Path) -> None:
    with Writer(tmp_path / 'set', Meta('kitchen', 'franka', 0.2, {'base': (8, 8)})) as out:
        for name, notes in (('a', entry(1)), ('b', {}), ('c', entry(2))):
            out.add(episode(name, notes))
    file = tmp_path / 'kitchen.json'
    assert vla_it.write_dataset(Dataset.open(tmp_path / 'set'), file) == 2
    assert json.loads(file.read_text(encoding='utf-8')) == {'kitchen': {'a': entry(1), 'c': entry(2)}}
    found = Annotations.open(file)
    own = {'features': {'move_primitive': ['stop'] * 3}, 'mine': 1}
    merged = found.annotate(episode('a', own), 'kitchen').annotations
    assert merged == {**entry(1), 'mine': 1}
    bare = episode('b', {})
    assert found.annotate(bare, 'kitchen') is bare
    with pytest.raises(DataError, match='3 move primitives.*5 frames'):
        found.annotate(episode('a', {}, t=5), 'kitchen')


# -- general conversations --------------------------------------------------------------------------------------------


def turns(*texts: str) -> list[dict[str, str]]:
    return [{'from': ('human', 'gpt')[k % 2], 'value': text} for k, text in enumerate(texts)]


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    (tmp_path / 'pictures').mkdir()
    Image.new('RGB', (30, 20), (250, 0, 0)).save(tmp_path / 'pictures' / 'red.png')
    Image.new('L', (10, 40), 128).save(tmp_path / 'pictures' / 'grey.jpg')
    (tmp_path / 'pictures' / 'text.jpg').write_text('not a picture')
    return tmp_path


def write(folder: Path, items: list[Any], lines: bool = False) -> Path:
    file = folder / ('talk.jsonl' if lines else 'talk.json')
    text = '\n'.join(json.dumps(i) for i in items) + '\n' if lines else json.dumps(items)
    file.write_text(text)
    return file


@pytest.mark.parametrize('lines', [False, True])
def test_conversations(gallery: Path, lines: bool) -> None:
    items = [
        {'id': 'a', 'image': 'pictures/red.png', 'conversations': turns('<image>\nHue?', 'Red.', 'Sure?', 'Yes.')},
        {'id': 7, 'image': 'pictures/grey.jpg', 'conversations': turns('Describe.\n<image>', 'Grey <|im_end|>')},
        {'conversations': turns('Two and two?', 'Four.')},
    ]
    talk = pickle.loads(pickle.dumps(Conversations.open(write(gallery, items, lines))))
    assert len(talk) == 3
    first = talk.read(0)
    assert [(m['role'], m['content']) for m in first.messages] == [
        ('user', 'Hue?'), ('assistant', 'Red.'), ('user', 'Sure?'), ('assistant', 'Yes.')]  # fmt: skip
    assert first.image is not None and first.image.shape == (20, 30, 3) and first.image[0, 0].tolist() == [250, 0, 0]
    second = talk.read(1)
    assert second.messages[0]['content'] == 'Describe.' and second.messages[1]['content'] == 'Grey < |im_end|>'
    assert second.image is not None and second.image.shape == (40, 10, 3) and second.name == '7'
    assert talk.read(2).image is None
    assert talk.draw(2).messages == talk.read(2).messages and talk.summary() == '' and talk.draws == 1


FAULTS = [
    ({'image': 'pictures/none.jpg', 'conversations': turns('<image>\na', 'b')}, 'image missing'),
    ({'image': 'pictures/text.jpg', 'conversations': turns('<image>\na', 'b')}, 'image damaged'),
    ({'image': '../pictures/red.png', 'conversations': turns('<image>\na', 'b')}, 'image outside'),
    ({'image': '/etc/hostname', 'conversations': turns('<image>\na', 'b')}, 'image outside'),
    ({'image': ['a.png', 'b.png'], 'conversations': turns('<image>\na', 'b')}, 'several images'),
    ({'image': 'pictures/red.png', 'conversations': turns('<image><image>\na', 'b')}, 'several images'),
    ({'conversations': turns('<image>\na', 'b')}, 'image missing'),
    ({'conversations': turns('a')}, 'turns'),
    ({'conversations': turns('a', 'b', 'c')}, 'turns'),
    ({'conversations': [{'from': 'gpt', 'value': 'b'}]}, 'turns'),
    ({'conversations': turns('a', ' ')}, 'empty turn'),
    ({'conversations': [{'from': 'bird', 'value': 'a'}]}, 'form'),
    ({'conversations': []}, 'form'),
    ({'id': 1}, 'form'),
    (['a'], 'form'),
]


def test_every_fault_is_named_and_counted(gallery: Path) -> None:
    good = {'conversations': turns('a', 'b')}
    items = [x for fault, _ in FAULTS for x in (fault, good)]
    talk = Conversations.open(write(gallery, items))
    for k, (_, kind) in enumerate(FAULTS):
        with pytest.raises(DataError, match=f'sample {2 * k}'):
            talk.read(2 * k)
        before = talk.errors[kind]
        assert talk.draw(2 * k).name == str(2 * k + 1), 'the next usable one'
        assert talk.errors[kind] == before + 1, kind
    assert talk.errors.total() == len(FAULTS) == talk.draws
    assert 'image damaged' in talk.summary() and 'text.jpg' in talk.summary()


def test_a_broken_source_does_not_go_on_for_ever(gallery: Path) -> None:
    talk = Conversations.open(write(gallery, [FAULTS[0][0]] * 50))
    with pytest.raises(DataError, match='20 samples from number 3.*20 x image missing'):
        talk.draw(3)


def test_nothing_in_it(gallery: Path) -> None:
    with pytest.raises(DataError, match='no conversations'):
        Conversations.open(write(gallery, []))
    (gallery / 'cut.json').write_text(json.dumps([{'conversations': turns('a', 'b')}])[:-3])
    with pytest.raises(DataError, match='byte'):
        Conversations.open(gallery / 'cut.json')
