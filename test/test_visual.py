"""What is shown: numbers of the shapes, how they fade and disappear, and the drawing into camera images."""

from __future__ import annotations

import numpy as np
import pytest

from instructvla_ros import config, resources
from instructvla_ros.annotate import annotate, project
from instructvla_ros.control.frames import LinkFrames
from instructvla_ros.control.kinematics import Kinematics
from instructvla_ros.datatypes import ActionChunk, Reasoning, ReasoningKind, Verdict, VerdictAction
from instructvla_ros.errors import SetupError
from instructvla_ros.geometry import Array, integrate, look_at, pose_from_xyz_rpy
from instructvla_ros.settings import Embodiment, Safety, Visual
from instructvla_ros.visual import MAX_POINTS, Board, Kind, Shape, chunk_poses, describe, time_colors, wrap

START = pose_from_xyz_rpy([0.45, 0.05, 0.3, np.pi, 0.1, 0.4])
VISUAL, SAFETY = Visual(), Safety()


def chunk(
    name: str = 'chunk-a', said: str = 'say-a', horizon: int = 8, frame: str = 'base', rotation: str = 'rpy',
    reference: Array = START,
) -> ActionChunk:  # fmt: skip
    steps = np.random.default_rng(3).normal(0.0, 0.02, (horizon, 7))
    steps[:, 6] = np.linspace(1.0, 0.0, horizon)
    return ActionChunk(name, 0, 0, 0.1, steps, 'fr3_link0', reference, frame, rotation, reasoning_id=said)  # type: ignore[arg-type]


def plan(name: str = 'say-a', text: str = 'I will move to the red cube.', **fields: object) -> Reasoning:
    return Reasoning(name, 0, 'pick the red cube', text, **fields)  # type: ignore[arg-type]


def board(**settings: object) -> Board:
    return Board(Visual(**settings), SAFETY, 0.08)  # type: ignore[arg-type]


def report(
    on: Board, now: float = 0.0, tcp: Array | None = START, verdicts: tuple[Verdict, ...] = (), stamp: int = 0
) -> None:
    on.on_state(stamp, tcp, 'chunk-a', 'say-a', 2, verdicts, now)


def named(shapes: list[Shape], namespace: str) -> list[Shape]:
    return [s for s in shapes if s.namespace == namespace]


@pytest.mark.parametrize('frame', ['base', 'tool'])
@pytest.mark.parametrize('rotation', ['rpy', 'rotvec'])
def test_the_path_is_what_the_deltas_mean(frame: str, rotation: str) -> None:
    c = chunk(frame=frame, rotation=rotation)
    expected = integrate(START, c.steps, frame, rotation)  # type: ignore[arg-type]
    assert np.allclose(chunk_poses(c)[1:], expected, atol=1e-12) and np.array_equal(chunk_poses(c)[0], START)
    b = board()
    b.on_chunk(c, 0.0)
    shapes, _ = b.update(0.0)
    for namespace in ('chunk_path', 'chunk_points'):
        (shape,) = named(shapes, namespace)
        assert np.allclose(shape.points, np.vstack([START[:3, 3], expected[:, :3, 3]]), atol=1e-12)


def test_base_and_tool_deltas_differ() -> None:
    assert not np.allclose(chunk_poses(chunk(frame='base')), chunk_poses(chunk(frame='tool')), atol=1e-3)


def test_gripper_bars_show_opening_across_the_fingers() -> None:
    b, c = board(), chunk()
    b.on_chunk(c, 0.0)
    (bars,) = named(b.update(0.0)[0], 'chunk_gripper')
    ends = bars.points.reshape(-1, 2, 3)
    widths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    assert np.allclose(widths, 0.08 * np.maximum(c.steps[:, 6], 0.05))
    assert np.allclose(ends.mean(axis=1), chunk_poses(c)[1:, :3, 3])
    across = (ends[0, 1] - ends[0, 0]) / widths[0]
    assert np.allclose(across, chunk_poses(c)[1, :3, 1])
    assert bars.colors is not None and bars.colors[0, 1] > bars.colors[-1, 1]


def test_time_colours_run_from_blue_to_yellow() -> None:
    colors = time_colors(9, 0.5)
    assert colors.shape == (9, 4) and np.all(colors[:, 3] == 0.5)
    assert colors[0, 2] > 0.9 and colors[-1, 2] < 0.2 and colors[-1, 0] > 0.9
    assert len(np.unique(colors, axis=0)) == 9
    assert time_colors(1).shape == (1, 4) and time_colors(0).shape == (0, 4)


def test_earlier_chunks_fade_then_are_deleted() -> None:
    b = board(fade_time=2.0)
    b.on_chunk(chunk('chunk-a'), 0.0)
    before = named(b.update(0.1)[0], 'chunk_path')
    b.on_chunk(chunk('chunk-b'), 0.2)
    alphas = []
    for now in (0.2, 0.7, 1.2):
        shapes, gone = b.update(now)
        old, new = named(shapes, 'chunk_path')
        assert old.key == before[0].key and new.id != old.id and not gone
        assert old.colors is not None and new.colors is not None and new.colors[0, 3] == pytest.approx(
            1.0 if now <= 1.0 else 0.9
        )
        alphas.append(old.colors[0, 3])
    assert np.allclose(alphas, [1.0, 0.75, 0.5])
    _, gone = b.update(2.2)
    assert set(gone) == {('chunk_path', before[0].id), ('chunk_points', before[0].id)}
    assert b.update(2.3)[1] == []
    # A last chunk without a successor fades from its own end, and so does the prediction.
    assert b.prediction is not None and b.prediction[0].id == 'chunk-b'
    shapes, gone = b.update(5.0)
    assert {s.namespace for s in shapes} == {'workspace', 'table'} and b.prediction is None
    assert {g[0] for g in gone} == {'chunk_path', 'chunk_points', 'chunk_gripper', 'chunk_label'}


def test_a_refused_chunk_is_red_where_it_begins() -> None:
    b = board()
    b.on_chunk(chunk(), 0.0)
    far = pose_from_xyz_rpy([0.6, -0.2, 0.5, np.pi, 0.0, 0.0])
    report(b, tcp=far, verdicts=(
        Verdict('chunk_age', VerdictAction.REFUSED, 'chunk', 0.9, 0.6, 's', 'too old', 'chunk-a'),
        Verdict('workspace', VerdictAction.CLIPPED, 'z', -0.01, 0.0, 'm', 'low', 'chunk-a'),
    ))  # fmt: skip
    shapes, _ = b.update(0.0)
    (path,) = named(shapes, 'chunk_path')
    assert path.colors is not None and np.all(path.colors[:, 0] == 1.0) and np.all(path.colors[:, 1] < 0.2)
    refused, clipped = named(shapes, 'verdict_place')
    assert np.allclose(refused.position, START[:3, 3]) and np.allclose(clipped.position, far[:3, 3])
    assert 'REFUSED' in named(shapes, 'chunk_label')[0].text
    assert named(shapes, 'verdict')[0].text == 'chunk_age REFUSED\nchunk 0.9 s (limit 0.6)\nchunk-a'


def test_equal_verdicts_are_counted_and_fade() -> None:
    b = board(verdict_time=2.0)
    clipped = Verdict('workspace', VerdictAction.CLIPPED, 'z', -0.01, 0.0, 'm')
    for k in range(5):
        report(b, now=0.1 * k, verdicts=(clipped,))
    (text,) = named(b.update(0.4)[0], 'verdict')
    assert text.text.startswith('workspace CLIPPED x5') and text.color[3] == pytest.approx(1.0)
    (later,) = named(b.update(1.4)[0], 'verdict')
    assert later.key == text.key and later.color[3] == pytest.approx(0.5)
    assert set(b.update(2.5)[1]) == {('verdict', text.id), ('verdict_place', text.id)}


def test_other_verdicts_at_one_place_stand_above_each_other() -> None:
    b = board()
    report(b, verdicts=tuple(Verdict(rule, VerdictAction.SCALED, 'tcp', 1.0, 0.5, 'm/s') for rule in 'abc'))
    heights = sorted(s.position[2] for s in named(b.update(0.0)[0], 'verdict'))
    assert np.all(np.diff(heights) > 0.05)


def test_verdict_without_numbers_says_its_sentence() -> None:
    lines = describe(Verdict('malformed', VerdictAction.REFUSED, 'chunk', text='horizon 0, allowed 1 .. 1024'))
    assert lines == ['malformed REFUSED', 'horizon 0, allowed 1 .. 1024']


def test_the_sentence_floats_over_the_gripper_with_its_ids() -> None:
    b = board()
    b.on_reasoning(plan())
    for k in range(3):
        b.on_chunk(chunk(f'chunk-{k}'), 0.1 * k)
    report(b)
    shapes, _ = b.update(0.3)
    (said,), (ids,) = named(shapes, 'thought'), named(shapes, 'thought_ids')
    assert said.kind is Kind.TEXT and said.text == 'I will move to the red cube.'
    assert np.allclose(said.position[:2], START[:2, 3]) and said.position[2] > START[2, 3] + 0.1
    assert 'say-a -> chunk-0 .. chunk-2 (3)' in ids.text and 'plays chunk-a step 2' in ids.text
    assert all('say-a' in s.text for s in named(shapes, 'chunk_path'))


def test_growing_sentences_replace_themselves_and_old_ones_make_the_history() -> None:
    b = board(thoughts=2)
    b.on_reasoning(plan('say-0', 'I wi', final=False))
    assert named(b.update(0.0)[0], 'thought')[0].text == 'I wi\n...'
    b.on_reasoning(plan('say-0', 'I will.'))
    assert not named(b.update(0.0)[0], 'thoughts')
    for k in range(1, 5):
        b.on_reasoning(plan(f'say-{k}', f'sentence {k}'))
    b.on_reasoning(plan('say-q', 'Two cubes.', kind=ReasoningKind.ANSWER))
    shapes, _ = b.update(0.0)
    assert named(shapes, 'thought')[0].text == 'sentence 4'
    history = named(shapes, 'thoughts')
    assert [s.id for s in history] == [0, 1]
    assert 'pick the red cube - Two cubes.' in history[0].text and 'sentence 3' in history[1].text
    assert history[0].position[2] > history[1].position[2] and history[0].color[3] > history[1].color[3]
    assert all(s.position[1] > SAFETY.workspace_upper[1] for s in history)


def test_broken_chunks_show_their_finite_beginning() -> None:
    good = chunk()
    steps = good.steps.copy()
    steps[3, 1] = np.nan
    for rows, count in ((steps, 4), (np.full((8, 7), np.inf), 1)):
        b = board()
        c = ActionChunk('chunk-n', 0, 0, 0.1, rows, 'fr3_link0', START)
        b.on_chunk(c, 0.0)
        shapes, _ = b.update(0.0)
        assert len(named(shapes, 'chunk_points')[0].points) == count
        assert all(well_formed(s) for s in shapes)


def well_formed(shape: Shape) -> bool:
    numbers = [shape.position, np.array(shape.scale), np.array(shape.color), shape.points]
    finite = all(np.all(np.isfinite(n)) for n in numbers)
    colors = shape.colors is None or (
        shape.colors.shape == (len(shape.points), 4) and np.all(shape.colors >= 0) and np.all(shape.colors <= 1)
    )
    even = shape.kind is not Kind.LINE_LIST or len(shape.points) % 2 == 0
    return finite and bool(colors) and even and min(shape.scale) > 0 and 0 < shape.color[3] <= 1


def test_a_long_life_stays_small_and_well_formed() -> None:
    b, rng, alive = board(), np.random.default_rng(0), set()
    for k in range(300):
        now = 0.05 * k
        start = pose_from_xyz_rpy([*rng.uniform(0.2, 0.7, 3), np.pi, 0.0, 0.0])
        b.on_chunk(chunk(f'chunk-{k}', f'say-{k // 5}', 200, reference=start), now)
        if k % 5 == 0:
            b.on_reasoning(plan(f'say-{k // 5}', 'word ' * 60))
        report(b, now, start, (Verdict(f'rule {k}', VerdictAction.HELD, 'x', 1.0, 0.5, 'm'),), stamp=k * 50_000_000)
        shapes, gone = b.update(now)
        keys = [s.key for s in shapes]
        assert len(set(keys)) == len(keys) <= 120 and all(well_formed(s) for s in shapes)
        assert not set(gone) & set(keys) and set(gone) <= alive
        alive = (alive - set(gone)) | set(keys)
        assert alive == set(keys), 'a viewer that applies what it is told shows exactly what is there'
    assert len(b.executed) <= 500 and max(len(s.points) for s in shapes) <= 2 * MAX_POINTS


def test_the_executed_path_keeps_what_moved_and_forgets() -> None:
    b = board(executed_time=10.0)
    for k in range(50):
        pose = START.copy()
        pose[0, 3] += 0.01 * (k // 10)
        report(b, tcp=pose, stamp=int(k * 0.1e9))
    assert [round(p[0, 3] - START[0, 3], 3) for _, p in b.executed] == [0.0, 0.01, 0.02, 0.03, 0.04]
    report(b, stamp=int(12.5e9))
    assert [s for s, _ in b.executed] == [int(3e9), int(4e9), int(12.5e9)]
    report(b, stamp=int(1e9))
    assert [s for s, _ in b.executed] == [int(1e9)], 'the clock went back'
    report(b, tcp=None, stamp=int(2e9))
    assert len(b.executed) == 1


def test_wrap_limits_lines_and_control_characters() -> None:
    assert wrap('a\x00b\n c', 10, 2) == ['a b c']
    lines = wrap('word ' * 50, 20, 3)
    assert len(lines) == 3 and all(len(line) <= 20 for line in lines) and lines[-1].endswith('...')
    assert wrap('', 10, 2) == ['']


def test_bounds_are_those_of_the_ladder() -> None:
    shapes, _ = board().update(0.0)
    (box,), (table,) = named(shapes, 'workspace'), named(shapes, 'table')
    assert np.allclose(box.points.min(axis=0), SAFETY.workspace_lower)
    assert np.allclose(box.points.max(axis=0), SAFETY.workspace_upper) and len(box.points) == 24
    assert table.position[2] + table.scale[2] / 2 == pytest.approx(SAFETY.table_height)


def test_projection() -> None:
    k = np.array([[500.0, 0.0, 320.0], [0.0, 500.0, 240.0], [0.0, 0.0, 1.0]])
    camera = look_at([1.0, 0.0, 0.5], [0.4, 0.0, 0.1])
    pixels = project(np.array([[0.4, 0.0, 0.1], [0.4, 0.1, 0.1], [0.4, 0.0, 0.2], [2.0, 0.0, 1.2]]), k, camera)
    assert np.allclose(pixels[0], [320.0, 240.0])
    distance = np.linalg.norm([0.6, 0.0, 0.4])
    assert np.allclose(pixels[1], [320.0 + 500.0 * 0.1 / distance, 240.0]), 'y of the base is to the right here'
    assert pixels[2, 1] < 240.0 and np.all(np.isnan(pixels[3]))


def test_annotation_draws_path_and_words_and_leaves_the_rest() -> None:
    image = np.full((240, 320, 3), 90, np.uint8)
    pixels = np.array([[100.0, 60.0], [160.0, 60.0], [np.nan, np.nan], [1e9, 0.0], [200.0, 100.0]])
    out = annotate(image, 'I will move to the red cube.', 'say-a', pixels, np.array([1, 1, 0, 0, np.nan]))
    assert out.shape[0] > 240 and out.shape[1:] == (320, 3) and out.dtype == np.uint8 and np.all(image == 90)
    changed = np.any(out[:240] != image, axis=2)
    assert changed[60, 110:150].all() and changed[100, 200]
    assert not changed[:50].any() and not changed[110:].any() and not changed[80, :].any()
    assert (out[240:] > 220).any()
    wordless = annotate(image, '', '')
    assert wordless.shape == out.shape, 'the size does not depend on the sentence'
    assert np.array_equal(wordless[:240], image) and len(np.unique(wordless[240:])) == 1
    long = annotate(image, 'word ' * 99, 'x' * 500)
    assert long.shape == out.shape and len(np.unique(long[:, -2:])) == 2 and len(np.unique(long[-2:])) == 1
    assert annotate(np.zeros((16, 16, 3), np.uint8), 'word ' * 99, 'x' * 500).shape[1:] == (16, 3)


def test_links_are_where_the_kinematics_have_them() -> None:
    embodiment = config.load(Embodiment, resources.config_file('franka.yaml'))
    frames = LinkFrames(resources.robot_description('fr3'), embodiment.base_frame)
    frames.set_joints({**dict(zip(embodiment.arm_joints, embodiment.home, strict=True)), 'no_such': 1.0})
    tcp = Kinematics(embodiment).forward(embodiment.home)
    assert np.allclose(frames.pose(embodiment.tcp_frame), tcp, atol=1e-9)
    assert np.allclose(frames.poses()[embodiment.tcp_frame], tcp, atol=1e-9) and 'fr3_link0' not in frames.poses()
    assert frames.is_fixed('camera_color_optical_frame') and not frames.is_fixed('wrist_camera_color_optical_frame')
    frames.set_joints({embodiment.arm_joints[0]: float('nan')})
    assert np.allclose(frames.pose(embodiment.tcp_frame), tcp, atol=1e-9)
    with pytest.raises(SetupError, match='camera_color_optical_frame'):
        frames.pose('camera_colour_optical_frame')
    with pytest.raises(SetupError, match='cannot be read'):
        LinkFrames('<broken', 'fr3_link0')
