"""Recording without ROS: bags that open at any moment, kills, full disks, slow disks, marks, silence."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rosbags.highlevel import AnyReader

from instructvla_ros.data import mcap_file
from instructvla_ros.data.bag_mcap import McapSource
from instructvla_ros.data.bag_repair import repair_bag
from instructvla_ros.data.bag_source import Problems
from instructvla_ros.data.bag_writer import BagWriter, Qos
from instructvla_ros.data.marks import MARK_TOPIC, Episodes
from instructvla_ros.data.message_definitions import definition
from instructvla_ros.data.recording import Recording, RecordingOptions, string_from_cdr, string_to_cdr
from instructvla_ros.data.recording_status import Meter, Watched
from instructvla_ros.errors import DataError, SetupError

STRING = 'std_msgs/msg/String'
BOTH = pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
SECOND = 1_000_000_000


def options(**changes: Any) -> RecordingOptions:
    return RecordingOptions(**{'min_free': 1.0, 'flush_period': 0.1, **changes})


def eventually(condition: Callable[[], Any], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, 'it did not happen'
        time.sleep(0.005)


def texts(bag: Path, topic: str = '/a') -> list[tuple[int, str]]:
    """Stamp and text of every message of a topic, read by a library that is not ours."""
    with AnyReader([bag]) as reader:
        wanted = [c for c in reader.connections if c.topic == topic]
        return [(t, reader.deserialize(raw, c.msgtype).data) for c, t, raw in reader.messages(wanted)]


def read(bag: Path) -> list[tuple[int, bytes]]:
    """Stamp and bytes of every message."""
    with AnyReader([bag]) as reader:
        return [(t, bytes(raw)) for _, t, raw in reader.messages()]


def feed(recording: Recording, count: int, first: int = 0, size: int = 100, topic: str = '/a') -> list[tuple[int, str]]:
    """Write numbered texts; those that were taken."""
    recording.add_topic(topic, STRING)
    out = []
    for k in range(first, first + count):
        text = f'{k} '.ljust(size, 'x')
        if recording.write(topic, SECOND + k, string_to_cdr(text)):
            out.append((SECOND + k, text))
    return out


# The bag.


@BOTH
@pytest.mark.parametrize('compress', [False, True])
def test_what_goes_in_comes_out(tmp_path: Path, storage: str, compress: bool) -> None:
    recording = Recording(
        tmp_path / 'bag', options(storage=storage, compress=compress), embodiment='name: fr3\n', robot='fr3',
        instruction='put the cube in the bowl',
    )  # fmt: skip
    sent = feed(recording, 500)
    recording.mark('start', 2 * SECOND)
    recording.mark('success', 3 * SECOND)
    summary = recording.close(4 * SECOND)
    assert texts(tmp_path / 'bag') == sent
    assert texts(tmp_path / 'bag', '/instructvla/embodiment') == [(SECOND, 'name: fr3\n')]
    assert texts(tmp_path / 'bag', '/instructvla/instruction') == [(SECOND, 'put the cube in the bowl')]
    marks = [yaml.safe_load(text) for _, text in texts(tmp_path / 'bag', MARK_TOPIC)]
    assert [m['mark'] for m in marks] == ['start', 'stop', 'success']
    assert {m['instruction'] for m in marks} == {'put the cube in the bowl'}
    assert summary['messages'] == 505 and summary['unwritten'] == summary['dropped'] == 0
    assert summary['episodes'] == [
        {'index': 1, 'instruction': 'put the cube in the bowl', 'seconds': 1.0, 'result': 'success'}
    ]
    suffix = {'mcap': '.mcap', 'sqlite3': '.db3'}[storage]
    assert sorted(p.name for p in (tmp_path / 'bag').iterdir()) == [f'bag_0{suffix}', 'metadata.yaml']


def test_metadata_is_what_rosbag2_writes(tmp_path: Path) -> None:
    bag = BagWriter(tmp_path / 'bag', 'sqlite3', compress=True, custom={'robot': 'fr3'})
    channel = bag.add_topic('/a', STRING, definition(STRING), Qos('best_effort', 'transient_local', 1))
    bag.write(channel, 5, string_to_cdr('x'))
    bag.write(channel, 9, string_to_cdr('y'))
    bag.close()
    data = yaml.safe_load((tmp_path / 'bag' / 'metadata.yaml').read_text())['rosbag2_bagfile_information']
    assert (data['version'], data['storage_identifier'], data['message_count']) == (9, 'sqlite3', 2)
    assert (data['compression_format'], data['compression_mode']) == ('zstd', 'message')
    assert data['duration'] == {'nanoseconds': 4} and data['starting_time'] == {'nanoseconds_since_epoch': 5}
    assert data['relative_file_paths'] == ['bag_0.db3'] and data['custom_data'] == {'robot': 'fr3'}
    topic = data['topics_with_message_count'][0]['topic_metadata']
    assert topic['type_description_hash'].startswith('RIHS01_')
    profile = topic['offered_qos_profiles'][0]
    assert (profile['reliability'], profile['durability'], profile['depth']) == ('best_effort', 'transient_local', 1)


@BOTH
def test_the_bag_opens_while_it_is_written(tmp_path: Path, storage: str) -> None:
    recording = Recording(tmp_path / 'bag', options(storage=storage))
    assert texts(tmp_path / 'bag') == []  # before the first message
    sent: list[tuple[int, str]] = []
    for part in range(5):
        sent += feed(recording, 50, 50 * part)
        last = sent[-1][0]
        eventually(lambda last=last: recording.status().safe_ns >= last)
        assert texts(tmp_path / 'bag') == sent
    recording.close()


def test_stamps_that_go_back_are_kept(tmp_path: Path) -> None:
    recording = Recording(tmp_path / 'bag', options())
    recording.add_topic('/a', STRING)
    for k in (5, 3, 9, 1):
        recording.write('/a', k, string_to_cdr(str(k)))
    recording.close()
    assert texts(tmp_path / 'bag') == [(1, '1'), (3, '3'), (5, '5'), (9, '9')]


def test_large_chunks_are_not_kept_in_memory(tmp_path: Path) -> None:
    recording = Recording(tmp_path / 'bag', options(flush_period=60.0))
    sent = feed(recording, 40, size=2**20)
    eventually(lambda: recording._bag.size() > mcap_file.CHUNK_BYTES)
    recording.close()
    assert texts(tmp_path / 'bag') == sent


def test_an_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / 'bag').mkdir()
    with pytest.raises(SetupError, match='never overwrites'):
        Recording(tmp_path / 'bag', options())
    (tmp_path / 'file').write_text('x')
    with pytest.raises(SetupError, match=f'cannot make {tmp_path}/file/bag'):
        Recording(tmp_path / 'file' / 'bag', options())


def test_definitions() -> None:
    image = definition('sensor_msgs/msg/Image')
    assert 'MSG: std_msgs/Header' in image.text and 'uint8[] data' in image.text
    assert 'MSG: instructvla_ros/SafetyVerdict' in definition('instructvla_ros/msg/ControllerState').text
    with pytest.raises(DataError, match='Source the workspace that has no_such_msgs'):
        definition('no_such_msgs/msg/Thing')
    for name in ('../../etc/msg/passwd', 'std_msgs/String', 'os;x/msg/Y', ''):
        with pytest.raises(DataError, match='not a message type'):
            definition(name)


@pytest.mark.parametrize('text', ['', 'a', 'Würfel\n', 'x' * 1000])
def test_strings_in_cdr(text: str) -> None:
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.LATEST)
    assert store.deserialize_cdr(string_to_cdr(text), STRING).data == text == string_from_cdr(string_to_cdr(text))
    big = b'\0\0\0\0' + (len(text.encode()) + 1).to_bytes(4, 'big') + text.encode() + b'\0'
    assert string_from_cdr(big) == text and string_from_cdr(big[:6]) == ''


# Kills.

CHILD = """
import sys, time
from pathlib import Path
from instructvla_ros.data.recording import Recording, RecordingOptions, string_to_cdr
folder, storage, compress = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == 'True'
recording = Recording(folder, RecordingOptions(storage=storage, compress=compress, min_free=1.0, flush_period=0.1))
recording.add_topic('/a', 'std_msgs/msg/String')
for k in range(10**9):
    recording.write('/a', 1 + k, string_to_cdr(f'{k} '.ljust(20000, 'x')))
    print(recording.status().safe_ns, flush=True)
    time.sleep(0.001)
"""


@BOTH
@pytest.mark.parametrize('compress', [False, True])
def test_a_killed_recorder_leaves_a_bag_that_opens(tmp_path: Path, storage: str, compress: bool) -> None:
    folder = tmp_path / 'bag'
    child = subprocess.Popen(
        [sys.executable, '-c', CHILD, str(folder), storage, str(compress)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    safe = 0
    moment = time.monotonic() + random.Random(storage + str(compress)).uniform(0.3, 0.8)
    try:
        for line in child.stdout:
            safe = int(line)
            if safe > 100 and time.monotonic() > moment:
                child.send_signal(signal.SIGKILL)
                break
        safe = max([safe, *(int(line) for line in child.stdout if line.endswith('\n'))])
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    try:
        found = texts(folder)
    except Exception:  # the kill fell into the one write; at most the last flush is lost
        repair_bag(folder)
        found = texts(folder)
    assert found == [(1 + k, f'{k} '.ljust(20000, 'x')) for k in range(len(found))]
    assert len(found) >= safe


def grown(path: Path, compress: bool = False) -> list[bytes]:
    """An mcap file after each of three flushes."""
    bag = BagWriter(path, 'mcap', compress)
    channels = [bag.add_topic(name, STRING, definition(STRING)) for name in ('/a', '/b')]
    states = []
    for part in range(3):
        for k in range(20 * part, 20 * part + 20):
            bag.write(channels[k % 2], SECOND + k, string_to_cdr(f'{k} '.ljust(300, 'x')))
        bag.flush()
        states.append((path / f'{path.name}_0.mcap').read_bytes())
    bag.close()
    return states


def count(file: Path) -> int:
    """Messages that our reader finds in a file, whatever state it is in."""
    source = McapSource(file, Problems())
    try:
        return sum(1 for _ in source.read(set(source.contents.channels)))
    finally:
        source.close()


@pytest.mark.parametrize('compress', [False, True])
def test_a_file_cut_off_anywhere_is_repaired(tmp_path: Path, compress: bool) -> None:
    states = grown(tmp_path / 'bag', compress)
    file = tmp_path / 'bag' / 'bag_0.mcap'
    data = states[-1]
    first = states[0].index(b'\x0f\x04\0\0\0\0\0\0\0')  # end of the data section after the first flush
    second = states[1].index(b'\x0f\x04\0\0\0\0\0\0\0')
    for cut in [*range(first, len(data), 1301), first + 1, second, second + 1, len(data) - 1]:
        file.write_bytes(data[:cut])
        done = repair_bag(tmp_path / 'bag')
        least = 20 if cut < second else 40
        assert done['messages'] >= least, cut
        expected = [(SECOND + k, string_to_cdr(f'{k} '.ljust(300, 'x'))) for k in range(done['messages'])]
        assert read(tmp_path / 'bag') == expected, cut
        assert repair_bag(tmp_path / 'bag')['removed'] == 0  # once is enough


def test_a_kill_between_any_two_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is replayed as a kill would leave it, at many places of every write of one flush."""
    bag = BagWriter(tmp_path / 'bag')
    channel = bag.add_topic('/a', STRING, definition(STRING))
    file = tmp_path / 'bag' / 'bag_0.mcap'
    messages = [(SECOND + k, string_to_cdr(f'{k} '.ljust(3000, 'x'))) for k in range(40)]
    for stamp, data in messages[:20]:
        bag.write(channel, stamp, data)
    bag.flush()
    before = file.read_bytes()
    calls: list[tuple[int, bytes]] = []
    real = os.pwrite
    monkeypatch.setattr(mcap_file.os, 'pwrite', lambda f, d, o: (calls.append((o, bytes(d))), real(f, d, o))[1])
    for stamp, data in messages[20:]:
        bag.write(channel, stamp, data)
    bag.flush()
    monkeypatch.undo()
    after = file.read_bytes()
    bag.close()
    assert len(calls) > 1
    state = bytearray(before)
    for number, (offset, data) in enumerate(calls):
        for done in [*range(0, len(data), max(1, len(data) // 8)), len(data)]:
            torn = bytearray(state)
            torn.extend(bytes(max(0, offset + done - len(torn)) if done else 0))
            torn[offset : offset + done] = data[:done]
            file.write_bytes(torn)
            # The first write, a footer that lengthens the file, is too small to be torn in practice.
            if number == 1 or (number == 0 and done in (0, len(data))):
                assert read(tmp_path / 'bag') == messages[:20], (number, done)
            assert count(file) >= 20, (number, done)
            assert repair_bag(tmp_path / 'bag')['messages'] in (20, 40), (number, done)
            assert read(tmp_path / 'bag') in (messages[:20], messages), (number, done)
        state.extend(bytes(max(0, offset + len(data) - len(state))))
        state[offset : offset + len(data)] = data
    assert bytes(state) == after
    file.write_bytes(after)
    assert read(tmp_path / 'bag') == messages


def test_what_cannot_be_repaired_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='0 storage files'):
        repair_bag(tmp_path / 'nothing')
    (tmp_path / 'bag').mkdir()
    (tmp_path / 'bag' / 'x.mcap').write_bytes(b'hello')
    with pytest.raises(DataError, match='is not an MCAP file'):
        repair_bag(tmp_path / 'bag')
    (tmp_path / 'bag' / 'x.mcap').write_bytes(mcap_file.MAGIC)
    with pytest.raises(DataError, match='nothing to recover'):
        repair_bag(tmp_path / 'bag')


# Disks.


def test_a_disk_that_fills_up_in_the_middle_of_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording(tmp_path / 'bag', options())
    kept = feed(recording, 100)
    eventually(lambda: recording.status().safe_ns >= kept[-1][0])
    room = [1000]
    real, size = os.pwrite, (tmp_path / 'bag' / 'bag_0.mcap').stat().st_size

    def full(fd: int, data: Any, offset: int) -> int:
        if offset + len(data) <= size:  # over blocks that exist
            return real(fd, data, offset)
        if room[0] == 0:
            raise OSError(errno.ENOSPC, 'No space left on device')
        part = min(room[0], len(data))
        room[0] -= part
        return real(fd, bytes(data)[:part], offset)

    monkeypatch.setattr(mcap_file.os, 'pwrite', full)
    lost = feed(recording, 100, 100, size=5000)
    assert recording.ended.wait(20.0)
    assert 'is full' in recording.status().ended
    assert not recording.write('/a', 5 * SECOND, string_to_cdr('late'))
    with pytest.raises(DataError, match='the recording has ended: .* is full'):
        recording.mark('start', 5 * SECOND)
    summary = recording.close(5 * SECOND)
    found = texts(tmp_path / 'bag')
    assert found[:100] == kept and len(found) < 200
    assert summary['unwritten'] == len(kept) + len(lost) - len(found) and 'is full' in summary['ended']
    assert repair_bag(tmp_path / 'bag')['removed'] == 0, 'the file is whole'


def test_a_full_database_keeps_its_transactions(tmp_path: Path) -> None:
    recording = Recording(tmp_path / 'bag', options(storage='sqlite3'))
    kept = feed(recording, 100)
    eventually(lambda: recording.status().safe_ns >= kept[-1][0])
    pages = recording._bag._file._db.execute('PRAGMA page_count').fetchone()[0]  # type: ignore[attr-defined]
    recording._bag._file._db.execute(f'PRAGMA max_page_count = {pages + 3}')  # type: ignore[attr-defined]
    feed(recording, 100, 100, size=5000)
    assert recording.ended.wait(20.0)
    summary = recording.close()
    found = texts(tmp_path / 'bag')
    assert found[:100] == kept and 'is full' in summary['ended'] and summary['unwritten'] > 0


SMALL = """
set -e
mount -t tmpfs -o size=6m tmpfs "$1"
"$2" - "$1/bag" "$3" <<'END'
import sys
from pathlib import Path
from instructvla_ros.data.recording import Recording, RecordingOptions, string_to_cdr
recording = Recording(Path(sys.argv[1]), RecordingOptions(storage=sys.argv[2], min_free=1.0, flush_period=0.1),
                      free=lambda folder: 10**12)
recording.add_topic('/a', 'std_msgs/msg/String')
k = 0
while not recording.ended.wait(0.001):
    recording.write('/a', 1 + k, string_to_cdr(f'{k} '.ljust(20000, 'x')))
    k += 1
summary = recording.close()
assert 'is full' in summary['ended'], summary
assert summary['messages'] > 100 and summary['unwritten'] > 0, summary
END
cp -r "$1/bag" "$4"
"""


@BOTH
def test_a_disk_that_is_really_full(tmp_path: Path, storage: str) -> None:
    if subprocess.run(['unshare', '-rm', 'true'], capture_output=True).returncode:
        pytest.skip('mounting a small file system needs user namespaces')
    (tmp_path / 'small').mkdir()
    words = ['unshare', '-rm', 'sh', '-c', SMALL, 'sh', str(tmp_path / 'small'), sys.executable, storage]
    done = subprocess.run([*words, str(tmp_path / 'bag')], capture_output=True, text=True, timeout=120)
    if 'mount:' in done.stderr:
        pytest.skip(f'no mount here: {done.stderr.strip()}')
    assert done.returncode == 0, done.stderr
    found = texts(tmp_path / 'bag')
    assert len(found) > 100
    assert found == [(1 + k, f'{k} '.ljust(20000, 'x')) for k in range(len(found))]


def test_the_margin_ends_the_recording(tmp_path: Path) -> None:
    left = [10**10]
    recording = Recording(tmp_path / 'bag', options(min_free=500.0), free=lambda folder: left[0])
    sent = feed(recording, 50)
    eventually(lambda: recording.status().safe_ns >= sent[-1][0])
    left[0] = 499 * 2**20
    assert recording.ended.wait(20.0)
    assert '499 MB left, the margin is 500 MB' in recording.status().ended
    recording.close()
    assert texts(tmp_path / 'bag') == sent
    with pytest.raises(SetupError, match='499 MB left, recording ends at 500 MB'):
        Recording(tmp_path / 'other', options(min_free=500.0), free=lambda folder: left[0])
    assert not (tmp_path / 'other').exists()


def test_a_slow_disk_drops_by_name_and_never_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    real = BagWriter.write
    monkeypatch.setattr(BagWriter, 'write', lambda *a: go.wait(30.0) and real(*a))
    recording = Recording(tmp_path / 'bag', options(queue=1.0))
    recording.add_topic('/big', STRING)
    began = time.monotonic()
    big = [recording.write('/big', k, string_to_cdr('x' * 300_000)) for k in range(1, 11)]
    small = feed(recording, 5)
    assert time.monotonic() - began < 10.0 and not go.is_set()
    assert 3 <= sum(big) <= 5 and not all(big) and len(small) == 5
    status = recording.status()
    assert status.backlog > 0.5
    assert any(p.startswith('/big: ') and 'dropped' in p for p in status.problems)
    go.set()
    summary = recording.close()
    assert summary['topics']['/big'] == {
        'type': STRING, 'messages': sum(big), 'bytes': sum(big) * 300_009, 'dropped': 10 - sum(big)
    }
    assert len(texts(tmp_path / 'bag', '/big')) == sum(big) and texts(tmp_path / 'bag') == small


def test_the_time_limit(tmp_path: Path) -> None:
    recording = Recording(tmp_path / 'bag', options(max_duration=0.2))
    sent = feed(recording, 3)
    assert recording.ended.wait(20.0)
    assert 'time limit of 0.2 s' in recording.close()['ended'] and texts(tmp_path / 'bag') == sent


# Marks, topics, silence.


def test_only_episodes_are_kept_when_asked(tmp_path: Path) -> None:
    recording = Recording(tmp_path / 'bag', options(only_episodes=True), instruction='go')
    recording.add_topic('/tf_static', STRING, Qos('reliable', 'transient_local', 1))
    assert recording.write('/tf_static', 1, string_to_cdr('frames'))
    assert feed(recording, 10) == []
    recording.mark('start', 2)
    inside = feed(recording, 10, 10)
    recording.mark('stop', 3)
    assert feed(recording, 10, 20) == []
    recording.close()
    assert texts(tmp_path / 'bag') == inside and texts(tmp_path / 'bag', '/tf_static') == [(1, 'frames')]


def test_an_episode_that_runs_at_the_end_gets_its_stop(tmp_path: Path) -> None:
    recording = Recording(tmp_path / 'bag', options())
    recording.mark('start', SECOND, 'a')
    recording.close(3 * SECOND)
    assert [(t, yaml.safe_load(m)['mark']) for t, m in texts(tmp_path / 'bag', MARK_TOPIC)] == [
        (SECOND, 'start'), (3 * SECOND, 'stop'),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('marks', 'results', 'refusal'),
    [
        (['start', 'stop'], [''], ''),
        (['start', 'success'], ['success'], ''),
        (['start', 'stop', 'success', 'discard'], ['discard'], ''),
        (['start', 'discard', 'start', 'success'], ['discard', 'success'], ''),
        (['start', 'start'], [''], 'episode 1 is running'),
        (['stop'], [], 'no episode has begun'),
        (['success'], [], 'no episode has begun'),
        (['start', 'stop', 'stop'], [''], 'episode 1 has ended already'),
        (['start', 'success', 'start', 'discard', 'discard'], ['success', 'discard'], 'episode 2 is discarded already'),
        (['begin'], [], "unknown mark 'begin'"),
    ],
)
def test_marks(marks: list[str], results: list[str], refusal: str) -> None:
    episodes = Episodes()
    for k, mark in enumerate(marks[:-1]):
        episodes.mark(mark, k)
    if refusal:
        with pytest.raises(DataError, match=refusal):
            episodes.mark(marks[-1], len(marks))
    else:
        episodes.mark(marks[-1], len(marks))
    assert [s.result for s in episodes.spans] == results


def test_silence() -> None:
    meter = Meter(began=100.0, silent_after=2.0)
    topics = [Watched('/camera', True, True), Watched('/state', True), Watched('/words'), Watched('/more', False, True)]
    meter.watch(topics)
    assert meter.silent(101.0) == {} and meter.never() == ['/camera', '/more']
    assert meter.silent(103.0) == {'/camera': 3.0}
    for name in ('/camera', '/state', '/words'):
        meter.counter(name).seen, meter.counter(name).last_seen = 10, 103.0
    assert meter.silent(104.0) == {}
    assert meter.silent(106.5) == {'/camera': 3.5, '/state': 3.5}, 'words come when they come'
    assert meter.never() == ['/more']
    meter.measure(105.0)
    assert meter.counter('/camera').rate == 2.0


def test_a_topic_has_to_be_announced(tmp_path: Path) -> None:
    recording = Recording(tmp_path / 'bag', options())
    with pytest.raises(DataError, match='announce the topic'):
        recording.write('/a', 1, b'')
    recording.close()


def test_another_type_on_a_topic_is_refused(tmp_path: Path) -> None:
    recording = Recording(tmp_path / 'bag', options())
    recording.add_topic('/a', STRING)
    recording.add_topic('/a', STRING)
    with pytest.raises(DataError, match='/a is recorded as std_msgs/msg/String'):
        recording.add_topic('/a', 'sensor_msgs/msg/Image')
    recording.close()
