"""Bags to episodes at the rate of the model: observations, end-effector motions, instructions, success.

Frame k holds what the live node would have observed; action k is the motion of the tcp in the ``step_period`` after
the frame's stamp, from the joint states by forward kinematics, and the openness that was commanded by then. Kinematics
are passed in, so that nothing here depends on a robot library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import camera_view, pairing
from ..datatypes import STEP_DIM
from ..errors import DataError, KinematicsError, ObservationError
from ..geometry import Array, delta_between
from ..settings import Embodiment, View
from .align import BuildOptions, Part, Timeline, read_timeline
from .bag_source import Problem
from .bag_values import Picture
from .bags import Bag
from .episodes import Episode, Frames, Meta
from .gripper import commanded, derived
from .schedule import Row, Run, schedule
from .segments import Segment, find_segments

Forward = Callable[[Array], Array]
"""Joint positions (n,) [rad] -> T_base_tcp (4, 4) [m]."""
_WORKERS = 2
_AHEAD = 16  # pictures on their way to the encoder; each holds the memory of its message
_MOST_REPEATED = 1.0 / 3.0


@dataclass
class Report:
    """What became of one bag.

    Attributes:
        seconds: length of the bag [s]. episodes: one line each (id, frames, instruction, success).
        notes: what was left out or is worth knowing, in sentences. problems: how many messages could not be used.
    """

    bag: str
    seconds: float = 0.0
    episodes: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: int = 0
    cached: bool = False

    @property
    def frames(self) -> int:
        """Frames of all episodes."""
        return sum(e['frames'] for e in self.episodes)


@dataclass
class _Plan:
    """An episode before its pictures are read."""

    id: str
    segment: Segment
    part: Part
    rows: tuple[Row, ...]


def meta_of(embodiment: Embodiment, options: BuildOptions, sizes: dict[str, tuple[int, int]], name: str) -> Meta:
    """Meta data of the dataset that bags of this robot go into."""
    return Meta(
        name=name,
        embodiment=embodiment.name,
        step_period=options.step_period,
        views={view: sizes[view] for view in embodiment.views},
        delta_frame=embodiment.delta_frame,
        rotation=embodiment.rotation,
        frame_id=embodiment.base_frame,
    )


def build_episodes(
    bag: Bag,
    embodiment: Embodiment,
    forward: Forward,
    options: BuildOptions,
    *,
    prefix: str,
    report: Report,
    instruction: str = '',
    skip: Callable[[str], bool] = lambda _: False,
    progress: Callable[[float], None] = lambda _: None,
) -> Iterator[tuple[Episode, Meta]]:
    """Episodes of a bag, one after the other, each with the meta data of its dataset.

    Args:
        forward: see :data:`Forward`. prefix: of the episode ids. report: filled in.
        instruction: for all episodes, instead of what was recorded.
        skip: episode id -> it is there already. progress: told the share of the bag that is done, 0..1.

    Raises:
        DataError: a topic is missing, nothing is usable, a camera is slower than the step period asks for, or, with
            ``on_gap`` 'refuse', there is a gap or clock jump; names file, topic and time.
    """
    timeline = read_timeline(bag, embodiment, options)
    progress(0.4)
    plans = _plan(bag, timeline, embodiment, options, prefix, report, instruction)
    meta = meta_of(embodiment, options, timeline.sizes, prefix)
    pending = [plan for plan in plans if not skip(plan.id)]
    for plan in plans:
        if plan not in pending:
            report.episodes.append({'id': plan.id, 'frames': len(plan.rows), 'instruction': plan.segment.instruction})
    for plan, frames, repeated in _pictures(bag, embodiment, pending, options, report, progress):
        try:
            episode = _episode(plan, frames, repeated, timeline, bag, embodiment, forward, options)
        except (KinematicsError, ObservationError) as err:
            report.notes.append(f'{plan.id} left out: {err}')
            continue
        report.episodes.append(
            {'id': episode.id, 'frames': len(episode), 'instruction': episode.instruction, 'success': episode.success}
        )
        yield episode, meta
    for (name, why), count in sorted(timeline.dropped.items()):
        report.notes.append(f'{count} x {name}: {why}')
    report.problems = bag.problem_count
    progress(1.0)


def _plan(
    bag: Bag,
    timeline: Timeline,
    embodiment: Embodiment,
    options: BuildOptions,
    prefix: str,
    report: Report,
    instruction: str,
) -> list[_Plan]:
    segments = find_segments(timeline.marks, timeline.instructions, bag.start_ns, bag.end_ns, instruction)
    report.notes += segments.notes
    report.seconds = bag.duration
    limit = int(options.max_state_age * 1e9)
    plans: list[_Plan] = []
    parts = [p for p in timeline.parts if p.states.count and p.candidates]
    if len(timeline.parts) > 1:
        _refuse(options, bag, f'{len(timeline.parts) - 1} clock jump(s): stamps go back in time')
        report.notes.append(f'clock jump: stamps go back {len(timeline.parts) - 1} time(s); episodes end there')
    for number, segment in enumerate(segments.found):
        pieces: list[tuple[Part, Run]] = []
        for part in parts:
            start, end = part.span(segment.start_ns, segment.end_ns)
            inside = [c for c in part.candidates if start <= c.stamp_ns <= end]

            def known(stamp_ns: int, part: Part = part) -> bool:
                return part.states.known(stamp_ns, limit)

            pieces += [(part, run) for found in schedule(inside, options, known) for run in _cut(found, options, known)]
        for _, run in pieces:
            if run.reason:
                _refuse(options, bag, run.reason)
                report.notes.append(f'episode {number}: split, {run.reason}')
        for piece, (part, run) in enumerate(pieces):
            name = f'{prefix}-{number:03d}' + (f'-{piece}' if len(pieces) > 1 else '')
            if len(run.rows) < options.min_frames:
                report.notes.append(f'{name} left out: {len(run.rows)} frames, needed are {options.min_frames}')
                continue
            _refuse_slow(bag, name, run.rows, embodiment, options)
            if not segment.instruction:
                report.notes.append(f'{name} has no instruction; give one with --instruction')
            plans.append(_Plan(name, segment, part, run.rows))
        if not pieces:
            report.notes.append(f'episode {number} left out: no pictures and joint states that belong together')
    return plans


def _cut(run: Run, options: BuildOptions, known: Callable[[int], bool]) -> list[Run]:
    """The same run, ended wherever the motion behind a frame was not measured."""
    period = round(options.step_period * 1e9)
    out: list[Run] = []
    start = 0
    for k, row in enumerate(run.rows[:-1]):
        if not known(row.stamp_ns + period):
            out.append(Run(run.rows[start : k + 1], f'no joint states after t = {row.stamp_ns * 1e-9:.3f} s'))
            start = k + 1
    return [*out, Run(run.rows[start:], run.reason)]


def _refuse(options: BuildOptions, bag: Bag, reason: str) -> None:
    if options.on_gap == 'refuse':
        raise DataError(f'{bag.path}: {reason}; allow it with --on-gap split')


def _refuse_slow(bag: Bag, name: str, rows: tuple[Row, ...], embodiment: Embodiment, options: BuildOptions) -> None:
    repeated = sum(row.repeated for row in rows)
    if repeated > _MOST_REPEATED * len(rows):
        rates = {view: bag.topics[v.topic].rate for view, v in embodiment.views.items()}
        slow = min(rates, key=lambda view: rates[view])
        raise DataError(
            f'{bag.path}: view {slow!r} has {rates[slow]:.1f} pictures per second, a step period of '
            f'{options.step_period} s needs {1.0 / options.step_period:.1f} ({repeated} of {len(rows)} frames of '
            f'{name} would repeat a picture); build with a longer --step-period'
        )


def _pictures(
    bag: Bag,
    embodiment: Embodiment,
    plans: list[_Plan],
    options: BuildOptions,
    report: Report,
    progress: Callable[[float], None],
) -> Iterator[tuple[_Plan, dict[str, Frames], int]]:
    """Read and encode the pictures of the plans in one pass; gives each plan as soon as it is complete."""
    topics = {view.topic: name for name, view in embodiment.views.items()}
    wanted: dict[str, set[int]] = {topic: set() for topic in topics}
    last: list[dict[str, int]] = []
    for plan in plans:
        for topic, name in topics.items():
            wanted[topic].update(row.pictures.frames[name][1] for row in plan.rows)
        last.append({name: max(row.pictures.frames[name][1] for row in plan.rows) for name in topics.values()})
    total = max(1, sum(map(len, wanted.values())))
    blobs: dict[str, dict[int, bytes | None]] = {name: {} for name in topics.values()}
    seen = dict.fromkeys(topics.values(), -1)
    queue: list[tuple[str, int, Any, Future[bytes]]] = []
    done = at = 0

    def finish(most: int) -> None:
        nonlocal done
        while len(queue) > most:
            name, index, record, future = queue.pop(0)
            try:
                blobs[name][index] = future.result()
            except (ObservationError, DataError) as err:
                blobs[name][index] = None
                bag.note(Problem(bag.path.name, f'picture left out: {err}', record.topic, record.recorded_ns))
            done += 1

    def complete() -> Iterator[tuple[_Plan, dict[str, Frames], int]]:
        nonlocal at
        while at < len(plans) and all(seen[name] >= index for name, index in last[at].items()):
            finish(0)
            plan = plans[at]
            at += 1
            frames, repeated = _collect(plan, blobs, options, report)
            keep = {name: {r.pictures.frames[name][1] for p in plans[at:] for r in p.rows[:1]} for name in blobs}
            for name, held in blobs.items():
                for index in [i for i in held if i <= last[at - 1][name] and i not in keep[name]]:
                    del held[index]
            if frames:
                yield plan, frames, repeated

    if not plans:
        return
    with ThreadPoolExecutor(_WORKERS, 'encode') as pool:
        for record in bag.messages(topics, lambda topic, index: index in wanted[topic]):
            name = topics[record.topic]
            packed = pool.submit(encode, record.value, options.quality, embodiment.views[name])
            queue.append((name, record.index, record, packed))
            seen[name] = record.index
            finish(_AHEAD)
            if done % 32 == 0:
                progress(0.4 + 0.6 * done / total)
            yield from complete()
        finish(0)
        for name in seen:  # what is missing now was readable in the first pass only
            seen[name] = 2**62
        yield from complete()


def encode(picture: Picture, quality: int, view: View) -> bytes:
    """JPEG or PNG bytes of what the policy sees of a picture.

    One that was recorded encoded and is seen as it is stays as it is, after a look at it.
    """
    encoded = picture.encoded() if camera_view.is_plain(view) else None
    rgb = camera_view.prepare(view, picture.rgb())
    return encoded if encoded is not None else Frames.encode([rgb], quality).encoded(0)


def _collect(
    plan: _Plan, blobs: dict[str, dict[int, bytes | None]], options: BuildOptions, report: Report
) -> tuple[dict[str, Frames], int]:
    """Pictures of an episode; a few that cannot be decoded are replaced by the one before, more end in its loss."""
    most = int(options.max_gap / options.step_period)
    repeated = sum(row.repeated for row in plan.rows)
    out: dict[str, Frames] = {}
    for name, held in blobs.items():
        row_blobs = [held.get(row.pictures.frames[name][1]) for row in plan.rows]
        first = next((k for k, blob in enumerate(row_blobs) if blob is not None), len(row_blobs))
        missing = longest = 0
        filled: list[bytes] = []
        for blob in row_blobs:
            missing = missing + 1 if blob is None else 0
            longest = max(longest, missing)
            repeated += blob is None
            if blob is None and filled:
                blob = filled[-1]
            if blob is not None:
                filled.append(blob)
        if first or longest > most:
            report.notes.append(f'{plan.id} left out: {max(first, longest)} pictures of {name!r} cannot be decoded')
            return {}, 0
        out[name] = Frames(filled)
    return out, repeated


def _episode(
    plan: _Plan,
    frames: dict[str, Frames],
    repeated: int,
    timeline: Timeline,
    bag: Bag,
    embodiment: Embodiment,
    forward: Forward,
    options: BuildOptions,
) -> Episode:
    stamps = np.array([row.stamp_ns for row in plan.rows], np.int64)
    limit, period = int(options.max_state_age * 1e9), round(options.step_period * 1e9)
    states = plan.part.states
    proprio, q, dq, actions = [], [], [], np.zeros((len(stamps), STEP_DIM))
    for k, stamp in enumerate(stamps.tolist()):
        state = states.at(stamp, limit)
        if state is None:
            raise ObservationError(f'no joint state at t = {stamp * 1e-9:.3f} s')
        tcp = forward(state.q)
        proprio.append(pairing.proprio(tcp, state.gripper))
        q.append(state.q)
        dq.append(state.dq)
        if k + 1 < len(stamps):
            after = states.at(stamp + period, limit)
            if after is None:
                raise ObservationError(f'no joint state at t = {(stamp + period) * 1e-9:.3f} s')
            actions[k, :6] = delta_between(tcp, forward(after.q), embodiment.delta_frame, embodiment.rotation)  # type: ignore[arg-type]
    ends = stamps + period
    if plan.part.commands:
        actions[:, 6] = commanded(plan.part.commands, ends, float(proprio[0][7]))
        source = 'commands'
    else:
        actions[:, 6] = derived(states.stamps, states.openness, ends)
        source = 'derived from the measured openness'
    return Episode(
        id=plan.id,
        instruction=plan.segment.instruction,
        step_period=options.step_period,
        stamps_ns=stamps,  # type: ignore[arg-type]
        proprio=np.array(proprio),
        q=np.array(q),
        dq=np.array(dq),
        actions=actions,
        views={name: frames[name] for name in embodiment.views},
        success=plan.segment.success,
        source=bag.path.name,
        info={
            'segment': plan.segment.origin,
            'gripper': source,
            'repeated_pictures': repeated,
            'alignment': _residuals(plan, embodiment, period),
            'dropped': {f'{name}: {why}': n for (name, why), n in timeline.dropped.items()},
        },
    )


def _residuals(plan: _Plan, embodiment: Embodiment, period: int) -> dict[str, dict[str, float]]:
    """Distance in time from the frames to the messages they are made of [ms], per topic."""
    stamps = np.array([row.stamp_ns for row in plan.rows], np.int64)
    out = {}
    for name, view in embodiment.views.items():
        of_view = np.array([row.pictures.frames[name][0] for row in plan.rows], np.int64)
        out[view.topic] = _spread(np.abs(of_view - stamps))
    out[embodiment.topics.joint_states] = _spread(plan.part.states.nearest(stamps))  # type: ignore[arg-type]
    if len(stamps) > 1:
        out['step period'] = _spread(np.abs(np.diff(stamps) - period))
    return out


def _spread(distance_ns: Any) -> dict[str, float]:
    return {
        'median_ms': round(float(np.median(distance_ns)) * 1e-6, 3),
        'max_ms': round(float(np.max(distance_ns)) * 1e-6, 3),
    }
