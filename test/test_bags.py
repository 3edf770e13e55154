"""Reading bags: every storage and compression, every type we use, and files that were damaged on purpose."""

from __future__ import annotations

import random
import resource
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_doubles import FRONT, JOINTS, MS, NAMES, T0, WRIST, forward, picture, robot, write

from instructvla_ros.data.align import BuildOptions
from instructvla_ros.data.bag_source import Channel
from instructvla_ros.data.bag_types import decoder, parse_definition
from instructvla_ros.data.bag_values import Camera, ControllerSample, GripperOrder, Joints, Picture
from instructvla_ros.data.bags import Bag, Record, open_bag
from instructvla_ros.data.build import Report, build_episodes
from instructvla_ros.data.rebag import BagWriter
from instructvla_ros.datatypes import ActionChunk, Reasoning
from instructvla_ros.errors import DataError
from instructvla_ros.geometry import pose

KINDS = [
    ('mcap', ''), ('mcap', 'message'), ('mcap', 'file'), ('mcap', 'chunk'),
    ('sqlite3', ''), ('sqlite3', 'message'), ('sqlite3', 'file'),
]  # fmt: skip


def read(path: Path) -> tuple[list[Record], Bag]:
    with open_bag(path) as bag:
        return list(bag.messages()), bag


@pytest.mark.parametrize(('storage', 'compression'), KINDS)
def test_every_storage_and_compression(tmp_path: Path, storage: str, compression: str) -> None:
    path = write(tmp_path / 'bag', seconds=0.5, storage=storage, compression=compression)
    with open_bag(path) as bag:
        assert bag.topics[FRONT].count == 7 and bag.topics[FRONT].type == 'sensor_msgs/msg/Image'
        assert bag.topics[JOINTS].rate == pytest.approx(100.0, rel=0.1)
        assert bag.duration == pytest.approx(0.59, abs=0.02)
        records = list(bag.messages([FRONT, WRIST, JOINTS]))
        assert [r.recorded_ns for r in records] == sorted(r.recorded_ns for r in records)
        assert len(records) == sum(bag.topics[t].count for t in (FRONT, WRIST, JOINTS))
        assert not bag.problems
        again = [(r.topic, r.index) for r in bag.messages([FRONT, WRIST, JOINTS])]
        assert again == [(r.topic, r.index) for r in records]
    third = [r for r in records if r.topic == FRONT][3]
    assert third.index == 3 and third.stamp_ns == T0 + 200 * MS
    assert isinstance(third.value, Picture) and third.value.size == (32, 24)
    assert np.array_equal(third.value.rgb(), picture(3, 1))
    joint = next(r for r in records if r.topic == JOINTS)
    assert isinstance(joint.value, Joints) and joint.value.names[:7] == NAMES and joint.value.position.shape == (9,)


def test_every_type_has_a_value(tmp_path: Path) -> None:
    with BagWriter(tmp_path / 'bag') as bag:
        bag.clock(5_000_000_001, recorded_ns=T0)
        bag.text('/words', T0 + 1, 'hello')
        bag.camera('/info', T0 + 2, np.diag([300.0, 310.0, 1.0]), 640, 480, 'optical')
        bag.gripper('/gripper', T0 + 3, 0.04)
        chunk = ActionChunk('c1', T0, T0 + 4, 0.1, np.ones((3, 7)), 'base', pose([1, 2, 3]), done=True)
        bag.chunk(chunk, '/chunk')
        make = bag.make
        bag.write('/why', 'instructvla_ros/msg/Reasoning', T0 + 5, make(
            'instructvla_ros/msg/Reasoning', header=bag.header(T0), id='r', text='I reach', kind=0, final=True))
        upright = make('geometry_msgs/msg/Quaternion', w=1.0)
        still = make('geometry_msgs/msg/Pose', orientation=upright)
        verdict = make('instructvla_ros/msg/SafetyVerdict', rule='workspace', action=2, value=0.9)
        bag.write('/state', 'instructvla_ros/msg/ControllerState', T0 + 6, make(
            'instructvla_ros/msg/ControllerState', header=bag.header(T0), mode=2, joint_names=['a'],
            commanded_pose=still, measured_pose=still, verdicts=[verdict], step_index=-1))
        bag.write('/temperature', 'sensor_msgs/msg/Temperature', T0 + 7, make(
            'sensor_msgs/msg/Temperature', header=bag.header(T0 + 7), temperature=21.5))  # fmt: skip
    values = {r.topic: r for r in read(tmp_path / 'bag')[0]}
    assert values['/clock'].value == values['/clock'].stamp_ns == 5_000_000_001
    assert values['/words'].value == 'hello' and values['/words'].stamp_ns == 0
    camera = values['/info'].value
    assert isinstance(camera, Camera) and (camera.k[1, 1], camera.width, camera.height) == (310.0, 640, 480)
    assert values['/gripper'].value == GripperOrder(0.04, 0.0, 0.0)
    back = values['/chunk'].value
    assert isinstance(back, ActionChunk) and np.array_equal(back.steps, chunk.steps) and back.done
    assert np.allclose(back.reference_pose, chunk.reference_pose)
    assert isinstance(values['/why'].value, Reasoning) and values['/why'].value.text == 'I reach'
    state = values['/state'].value
    assert isinstance(state, ControllerSample) and state.mode == 2 and state.verdicts[0].rule == 'workspace'
    assert values['/temperature'].value.temperature == 21.5  # a type without a reader: the message itself


def test_topics_are_mapped_and_missing_ones_named(tmp_path: Path) -> None:
    path = write(tmp_path / 'bag', seconds=0.3)
    with open_bag(path, {'/camera/color/image_raw': FRONT, WRIST: JOINTS}) as bag:
        assert bag.topics['/camera/color/image_raw'].recorded_as == FRONT
        assert bag.topics[WRIST].type == 'sensor_msgs/msg/JointState'
        assert next(bag.messages(['/camera/color/image_raw'])).topic == '/camera/color/image_raw'
        with pytest.raises(DataError, match='has no topic /front/image'):
            next(bag.messages([FRONT]))
    with pytest.raises(DataError, match="no topic /frnt/image to be used as /a. Did you mean '/front/image'"):
        open_bag(path, {'/a': '/frnt/image'})


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_split_files_are_one_bag(tmp_path: Path, storage: str) -> None:
    suffix = {'mcap': '.mcap', 'sqlite3': '.db3'}[storage]
    folder = tmp_path / 'all'
    folder.mkdir()
    for part in range(11):  # part 10 sorts before part 2 by letters
        with BagWriter(tmp_path / f'p_{part}', storage) as bag:
            bag.text('/words', T0 + part * 10**9, f'{part}')
            bag.text('/words', T0 + part * 10**9 + 5, f'{part}b')
        shutil.move(tmp_path / f'p_{part}' / f'p_{part}{suffix}', folder / f'all_{part}{suffix}')
    records, bag_read = read(folder)
    assert [r.value for r in records] == [f'{k}{s}' for k in range(11) for s in ('', 'b')]
    assert bag_read.topics['/words'].count == 22
    assert ['metadata.yaml' in str(p) for p in bag_read.problems] == [True]


def test_overlapping_files_are_merged(tmp_path: Path) -> None:
    folder = tmp_path / 'all'
    folder.mkdir()
    for part in range(3):
        with BagWriter(tmp_path / f'p_{part}') as bag:
            for k in range(20):
                bag.text(f'/words{part}', T0 + k * 10 + part, f'{k}')
        shutil.move(tmp_path / f'p_{part}' / f'p_{part}.mcap', folder / f'all_{part}.mcap')
    records, _ = read(folder)
    assert [r.recorded_ns - T0 for r in records] == sorted(10 * k + part for k in range(20) for part in range(3))


@pytest.mark.parametrize('metadata', [None, b'', b'\xff\xfe', b'a: [', b'rosbag2_bagfile_information: 3', b'[1, 2]'])
def test_metadata_is_not_needed(tmp_path: Path, metadata: bytes | None) -> None:
    path = write(tmp_path / 'bag', seconds=0.3)
    expected = len(read(path)[0])
    (path / 'metadata.yaml').unlink() if metadata is None else (path / 'metadata.yaml').write_bytes(metadata)
    records, bag = read(path)
    assert len(records) == expected
    assert [p.file for p in bag.problems] == ['metadata.yaml']


@pytest.mark.parametrize(('storage', 'compression'), KINDS)
@pytest.mark.parametrize('share', [0.35, 0.8])
def test_a_file_that_was_cut_off_is_read_up_to_there(
    tmp_path: Path, storage: str, compression: str, share: float
) -> None:
    path = write(tmp_path / 'bag', seconds=4.0, storage=storage, compression=compression)
    whole = [(r.topic, r.stamp_ns) for r in read(path)[0]]
    (path / 'metadata.yaml').unlink()
    file = next(path.iterdir())
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    records, bag = read(path)
    got = [(r.topic, r.stamp_ns) for r in records]
    assert set(got) <= set(whole)
    if storage == 'mcap':
        assert got == whole[: len(got)]
    # zstd needs whole blocks; what is not compressed is there up to the cut.
    assert len(got) > (0.2 if compression in ('file', 'chunk') and share < 0.5 else share - 0.15) * len(whole)
    assert any('cut off' in str(p) or 'has no end' in str(p) for p in bag.problems)
    for record in (r for r in records if r.topic == FRONT):
        number = round((record.stamp_ns - T0) * 15e-9)
        assert np.array_equal(record.value.rgb(), picture(number, 1))


def test_a_wrong_checksum_costs_its_chunk_only(tmp_path: Path) -> None:
    import zlib

    path = write(tmp_path / 'bag', seconds=12.0)
    file = path / 'bag.mcap'
    data = bytearray(file.read_bytes())
    chunks = chunk_offsets(data)
    assert len(chunks) >= 2
    for at in chunks:  # the writer leaves the checksum out
        (size,) = struct.unpack_from('<Q', data, at + 25)
        struct.pack_into('<I', data, at + 33, zlib.crc32(data[at + 49 : at + 49 + size]))
    file.write_bytes(data)
    whole = len(read(path)[0])
    data[chunks[0] + 200_000] ^= 1
    file.write_bytes(data)
    records, bag = read(path)
    assert 0 < len(records) < whole
    (problem,) = bag.problems
    assert 'checksum' in problem.text and problem.file == 'bag.mcap' and problem.recorded_ns >= T0 - 10**9


def test_the_first_damage_does_not_end_the_bag(tmp_path: Path) -> None:
    path = write(tmp_path / 'bag', seconds=12.0)
    file = path / 'bag.mcap'
    data = bytearray(file.read_bytes())
    chunks = chunk_offsets(data)
    struct.pack_into('<Q', data, chunks[0] + 1, 2**50)
    file.write_bytes(data)
    records, bag = read(path)
    assert records and any('going on at' in str(p) for p in bag.problems)


def chunk_offsets(data: bytes | bytearray) -> list[int]:
    """Where the chunks of a whole MCAP file begin."""
    at, found = 8, []
    while at + 9 <= len(data) - 8:
        kind, length = struct.unpack_from('<BQ', data, at)
        if kind == 6:
            found.append(at)
        at += 9 + length
    return found


@pytest.mark.parametrize('size', [2**40, 2**62, 300 * 2**20])
@pytest.mark.parametrize('compression', ['', 'chunk'])
def test_impossible_sizes_allocate_nothing(tmp_path: Path, size: int, compression: str) -> None:
    path = write(tmp_path / 'bag', seconds=1.0, compression=compression)
    file = path / 'bag.mcap'
    data = bytearray(file.read_bytes())
    struct.pack_into('<Q', data, chunk_offsets(data)[0] + 25, size)  # once unpacked
    file.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read(path)
    except DataError:
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB


def test_a_zstd_bomb_is_refused(tmp_path: Path) -> None:
    from instructvla_ros.data.bag_source import MAX_CHUNK, unpack, unpack_message
    from instructvla_ros.data.zstd import zstd

    bomb = zstd.compress(bytes(MAX_CHUNK + 2**20))
    assert len(bomb) < 2**20
    with pytest.raises(DataError, match='larger than the'):
        unpack_message(bomb)
    with pytest.raises(DataError, match='larger than the'):
        unpack(bomb, 'zstd', 1000)
    with pytest.raises(DataError, match='ends too early'):
        unpack(zstd.compress(bytes(range(256)) * 9)[:-3], 'zstd', 5000)
    with pytest.raises(DataError, match="compressed with 'rar'"):
        unpack(b'', 'rar', 10)


def test_lz4_is_read(tmp_path: Path) -> None:
    lz4 = pytest.importorskip('lz4.frame', reason='the package lz4 is not installed')
    from instructvla_ros.data.bag_source import unpack, unpack_message

    data = b'\x00\x01\x00\x00' + bytes(range(256)) * 50
    assert bytes(unpack_message(lz4.compress(data))) == data
    assert unpack(lz4.compress(data), 'lz4', len(data)) == data
    path = write(tmp_path / 'bag', seconds=0.3)
    expected = len(read(path)[0])
    file = path / 'bag.mcap'
    (path / 'bag.mcap.lz4').write_bytes(lz4.compress(file.read_bytes()))
    file.unlink()
    assert len(read(path)[0]) == expected


def test_nothing_that_is_no_bag_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='there is no bag'):
        open_bag(tmp_path / 'nowhere')
    with pytest.raises(DataError, match='holds no .mcap or .db3 file'):
        open_bag(tmp_path)
    (tmp_path / 'a.txt').write_text('hello')
    with pytest.raises(DataError, match='is not a bag'):
        open_bag(tmp_path / 'a.txt')
    for name, content in (('a.mcap', b''), ('b.mcap', b'hello' * 100), ('c.db3', b''), ('d.db3', b'hello' * 100)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match='cannot be read'):
            open_bag(tmp_path / name)


def test_a_wrong_type_hash_is_named_and_the_definition_used(tmp_path: Path) -> None:
    import sqlite3

    path = write(tmp_path / 'bag', seconds=0.3, storage='sqlite3')
    with sqlite3.connect(path / 'bag.db3') as database:
        database.execute("UPDATE topics SET type_description_hash = 'RIHS01_0000' WHERE name = ?", (JOINTS,))
    records, bag = read(path)
    assert sum(r.topic == JOINTS for r in records) == bag.topics[JOINTS].count > 0
    (problem,) = bag.problems
    assert problem.topic == JOINTS and 'type hash' in problem.text


def test_definitions_from_the_bag_decode_unknown_types(tmp_path: Path) -> None:
    raw = b'\x00\x01\x00\x00' + struct.pack('<iI', 7, 3) + b'ab\x00'
    channel = Channel(1, '/x', 'acme_msgs/msg/Part', 'int32 number\nstring name\nint32 BIG=3\n')
    message = decoder(channel, lambda text: None)(raw)
    assert (message.number, message.name) == (7, 'ab')
    notes: list[str] = []
    known = Channel(1, '/x', 'std_msgs/msg/String', 'string data\n???')
    assert decoder(known, notes.append)(b'\x00\x01\x00\x00' + struct.pack('<I', 3) + b'ab\x00').data == 'ab'
    assert 'using the known definition' in notes[0]
    with pytest.raises(DataError, match='not known and the bag holds no definition'):
        decoder(Channel(1, '/x', 'acme_msgs/msg/Part'), notes.append)


@pytest.mark.parametrize(
    ('text', 'name'),
    [
        ('int32 a', 'x\nimport os/msg/A'),
        ('int32 a', "a/msg/A']; raise SystemExit #"),
        ('string[100000000] a', 'acme_msgs/msg/A'),
        ('acme_msgs/A inner', 'acme_msgs/msg/A'),
        ('acme_msgs/Missing inner', 'acme_msgs/msg/A'),
        ('int32 a b c d', 'acme_msgs/msg/A'),
        ('int32 ' * 200_000, 'acme_msgs/msg/A'),
        ('string a "\'); import os; os.abort() #"', 'acme_msgs/msg/A'),
        ('', 'acme_msgs/msg/A'),
    ],
)
def test_hostile_definitions_are_refused_or_harmless(text: str, name: str) -> None:
    began = time.monotonic()
    try:
        message = decoder(Channel(1, '/x', name, text), lambda note: None)(b'\x00\x01\x00\x00' + bytes(16))
        assert message is not None
    except Exception as err:  # noqa: BLE001 - only these two kinds are allowed
        assert isinstance(err, DataError) or type(err).__name__ == 'SerdeError', repr(err)
    assert time.monotonic() - began < 10.0


def test_constants_and_defaults_of_definitions_are_dropped() -> None:
    types = parse_definition('int32 A=5\nint32 b 7\n', 'acme_msgs/msg/A')
    assert types['acme_msgs/msg/A'][0] == [] and [f[0] for f in types['acme_msgs/msg/A'][1]] == ['b']


def test_an_empty_image_is_left_out_by_name(tmp_path: Path) -> None:
    def empty(bag: BagWriter) -> None:
        for kind, topic in (('Image', FRONT), ('CompressedImage', '/jpeg')):
            name = f'sensor_msgs/msg/{kind}'
            bag.write(topic, name, T0 + 300 * MS, bag.make(name, header=bag.header(T0 + 300 * MS)))

    path = write(tmp_path / 'bag', after=empty)
    report = Report('bag')
    with open_bag(path) as bag:
        ((episode, _),) = build_episodes(
            bag, robot(), forward, BuildOptions(quality=0), prefix='t', report=report
        )
        assert any(p.topic == FRONT and '0 x 0 pixels' in p.text for p in bag.problems)
    assert len(episode) > 15


# One hundred damaged bags.


def mutate(data: bytes, seed: int) -> bytes:
    """Flip, cut, erase, repeat or overwrite parts of a file."""
    rng = random.Random(seed)
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        at = rng.randrange(len(out))
        kind = rng.choice(('flip', 'flip', 'cut', 'zero', 'ones', 'drop', 'repeat', 'number'))
        size = rng.choice((1, 4, 64, 4096))
        if kind == 'flip':
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 'cut':
            del out[max(at, 1) :]
        elif kind in ('zero', 'ones'):
            size = min(size, len(out) - at)
            out[at : at + size] = bytes([0 if kind == 'zero' else 255]) * size
        elif kind == 'drop':
            del out[at : at + size]
        elif kind == 'repeat':
            out[at:at] = out[at : at + size]
        else:
            value = struct.pack('<Q', rng.choice((0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)))
            out[at : at + 8] = value[: len(out) - at]
        if not out:
            out = bytearray(b'\0')
    return bytes(out)


@pytest.fixture(scope='module')
def small_bags(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], bytes]:
    """One small valid bag of each kind, as the bytes of its file."""
    folder = tmp_path_factory.mktemp('bags')
    out = {}
    for storage, compression in KINDS:
        path = write(folder / f'{storage}{compression}', seconds=1.0, storage=storage, compression=compression)
        out[storage, compression] = next(f for f in path.iterdir() if f.name != 'metadata.yaml').read_bytes()
    return out


@pytest.mark.parametrize('block', range(10))
def test_a_hundred_mutations(tmp_path: Path, small_bags: dict[tuple[str, str], bytes], block: int) -> None:
    """No crash, no hang, no memory: an error that names the file, or what is readable and why the rest is not."""
    readable = 0
    for seed in range(10 * block, 10 * block + 10):
        storage, compression = KINDS[seed % len(KINDS)]
        suffix = {'mcap': '.mcap', 'sqlite3': '.db3'}[storage] + ('.zstd' if compression == 'file' else '')
        file = tmp_path / f'bag_{seed}{suffix}'
        file.write_bytes(mutate(small_bags[storage, compression], seed))
        began = time.monotonic()
        try:
            with open_bag(file) as bag:
                for record in bag.messages():
                    if isinstance(record.value, Picture):
                        try:
                            record.value.rgb()
                        except Exception as err:  # noqa: BLE001
                            assert type(err).__name__ == 'ObservationError', (seed, repr(err))
                    readable += 1
                assert all(p.file and p.text for p in bag.problems)
                report = Report('bag')
                for episode, _ in build_episodes(
                    bag, robot(), forward, BuildOptions(quality=0), prefix='t', report=report
                ):
                    assert np.isfinite(episode.actions).all() and len(episode.views['front']) == len(episode)
        except DataError as err:
            assert file.name.split('.')[0] in str(err) or 'clock' in str(err), (seed, str(err))
        assert time.monotonic() - began < 30.0, seed
    assert readable > 0


def test_memory_stays_flat_over_a_long_bag(tmp_path: Path) -> None:
    """Chunks are read one at a time: a bag of 120 MB costs a few of them."""
    shown: Any = np.zeros((480, 640, 3), np.uint8)
    with BagWriter(tmp_path / 'bag') as bag:
        for k in range(130):
            shown[:] = k
            bag.image(FRONT, T0 + k * MS, shown)
    with open_bag(tmp_path / 'bag') as opened:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        total = sum(int(r.value.rgb()[0, 0, 0]) for r in opened.messages([FRONT]))
    assert total == sum(range(130))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024  # KiB


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_bags_of_our_recorder_are_read_while_it_still_writes(tmp_path: Path, storage: str) -> None:
    """A bag copied in the middle of its recording, as a killed recorder leaves it."""
    from instructvla_ros.data.bag_types import standard_types
    from instructvla_ros.data.recording import Recording, RecordingOptions

    store = standard_types()
    string = store.types['std_msgs/msg/String']
    recording = Recording(
        tmp_path / 'bag', RecordingOptions(storage=storage, min_free=1.0), embodiment='name: fr3', instruction='go'
    )
    try:
        recording.add_topic('/words', 'std_msgs/msg/String')
        for k in range(50):
            data = bytes(store.serialize_cdr(string(data=f'word {k}'), 'std_msgs/msg/String'))
            recording.write('/words', T0 + k * MS, data)
        deadline = time.monotonic() + 60.0
        copy = tmp_path / 'copy'
        while time.monotonic() < deadline:
            shutil.rmtree(copy, ignore_errors=True)
            # The description that is about to be renamed comes and goes while this copies.
            shutil.copytree(tmp_path / 'bag', copy, ignore=shutil.ignore_patterns('.*.part'))
            try:
                values = [r.value for r in read(copy)[0] if r.topic == '/words']
            except DataError:
                values = []
            if len(values) == 50:
                break
            time.sleep(0.2)
        assert values == [f'word {k}' for k in range(50)]
    finally:
        recording.close()
    records, bag = read(tmp_path / 'bag')
    assert not bag.problems
    assert next(r.value for r in records if r.topic == '/instructvla/embodiment') == 'name: fr3'
    assert next(r.value for r in records if r.topic == '/instructvla/instruction') == 'go'
