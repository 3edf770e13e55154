"""Demonstrations in simulation: the scripted expert, disturbed while it acts, with the clean plan as the label.

The arm is driven by the expert's chunks plus noise, kicks, early closing and random starts, so that states off the
expert's own path are visited; what is stored as the label is the expert's plan from the state it really reached, free
of that noise (disturbances for augmenting robot trajectories: DART, arXiv 1703.09327).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import camera_view
from ..config import option
from ..control.kinematics import Kinematics
from ..data.episodes import Episode, Frames, Meta
from ..datatypes import ActionChunk, Image, Observation, Reasoning, SceneState
from ..errors import TaskError
from ..evaluation.rollout import run_episode
from ..geometry import Array, delta_between, pose_from_xyz_rpy, xyz_rpy_from_pose
from ..policy import make_chunk
from ..settings import Control, Embodiment, PolicySettings, Randomization, Sim, View
from ..sim.annotations import alt_instruction
from ..sim.camera import CameraModel
from ..sim.expert import ScriptedExpert
from ..sim.relations import tray_centre
from ..sim.tasks import Episode as Task
from ..sim.tasks import make_episode
from ..sim.world import World

REDUCE = 2
"""Pictures are stored at half the size of the cameras; both image transforms make them smaller still."""


@dataclass(frozen=True)
class Noise:
    """How much the expert is disturbed; each episode draws its own share of it."""

    translation: float = option(0.0025, 'standard deviation per step and axis', unit='m', ge=0.0, le=0.05)
    rotation: float = option(0.006, 'the same for roll and pitch; yaw gets three times as much', unit='rad', ge=0.0)
    kick: float = option(0.04, 'share of chunks with a kick', ge=0.0, le=1.0)
    kick_size: float = option(0.02, 'standard deviation of a kick per step and axis, over two steps', unit='m', ge=0.0)
    early_close: float = option(0.02, 'share of chunks that close the gripper without need', ge=0.0, le=1.0)
    drop: float = option(0.01, 'share of chunks that open it without need', ge=0.0, le=1.0)
    slip: float = option(0.0, 'share of chunks with an object in hand that lose it and carry nothing', ge=0.0, le=1.0)
    start: float = option(0.35, 'share of episodes that begin with a move to a random place', ge=0.0, le=1.0)


@dataclass(frozen=True)
class Sample:
    """One moment of a demonstration.

    Attributes:
        steps: (H, 7) the expert's plan. sentence, phase: of its first step. seen: pictures and state.
        points: view -> (N, 2) objects in the picture, 0..1 from the top left corner, nan when outside.
    """

    seen: Observation
    scene: SceneState
    steps: Array
    sentence: str
    phase: str
    done: bool
    points: Mapping[str, Array]


class DisturbedExpert:
    """The expert as a policy that notes what it would do, and does something a little different."""

    name = 'expert'
    privileged = True
    checkpoint_revision = ''

    def __init__(self, settings: PolicySettings, noise: Noise, world: World, seed: int) -> None:
        self._settings, self._world = settings, world
        self._expert = ScriptedExpert(settings.step_period, settings.horizon)
        self._rng = np.random.default_rng([seed, 7])
        self._noise = noise
        self._share = float(self._rng.uniform(0.0, 1.2))
        self._detour: Array | None = None
        self._patience = 0
        if self._rng.random() < noise.start:
            self._detour, self._patience = self._somewhere(), int(self._rng.integers(2, 9))
        self._detour_closed = self._rng.random() < 0.05
        self.samples: list[Sample] = []

    def reset(self) -> None:
        """Nothing to forget."""

    def think(self, observation: Observation) -> Reasoning | None:
        """The demonstration needs no words while it runs."""
        return None

    def answer(self, observation: Observation, question: str) -> Reasoning:
        """Not a conversation partner."""
        raise TaskError('a demonstration answers no questions')

    def infer(self, observation: Observation, reasoning: Reasoning | None) -> ActionChunk:
        """Note the clean plan, return a disturbed one."""
        scene = observation.privileged
        if scene is None:
            raise TaskError('demonstrations need the ground truth of the simulator')
        plan = self._expert.plan(scene, observation.instruction)
        points = {v: project(seen_camera(self._world, v), scene) for v in observation.views}
        seen = replace(observation, views={v: reduce(i) for v, i in observation.views.items()}, privileged=None)
        steps = np.asarray(plan.steps, np.float64)
        self.samples.append(Sample(seen, scene, steps, plan.sentence, plan.phase, plan.done, points))
        return make_chunk(
            self, observation, self._disturb(steps, scene), self._settings.step_period, 0.0, done=plan.done
        )

    def _somewhere(self) -> Array:
        """A point (3,) above the table [m]."""
        return np.asarray(self._rng.uniform((0.36, -0.28, 0.06), (0.64, 0.28, 0.34)), np.float64)

    def _disturb(self, steps: Array, scene: SceneState) -> Array:
        out, rng, noise = steps.copy(), self._rng, self._noise
        if self._detour is not None and self._patience > 0:
            self._patience -= 1
            way = self._detour - scene.tcp_pose[:3, 3]
            out[:, :3] = way / max(1.0, float(np.linalg.norm(way)) / 0.02)
            out[:, 3:5], out[:, 5] = 0.0, rng.uniform(-0.06, 0.06)
            out[:, 6] = 0.0 if self._detour_closed and not scene.held else 1.0
            return out
        if noise.slip and scene.held and rng.random() < noise.slip * self._share:
            # What a policy meets after a poor grasp: a closed and empty hand on its way, the object left behind.
            self._detour, self._detour_closed, self._patience = self._somewhere(), True, int(rng.integers(2, 9))
            out[:, 6] = 1.0
            return out
        sigma = np.array([*[noise.translation] * 3, noise.rotation, noise.rotation, 3.0 * noise.rotation])
        out[:, :6] += self._share * rng.normal(size=6) * sigma
        if rng.random() < noise.kick * self._share:
            out[:2, :3] += rng.normal(size=3) * noise.kick_size
        draw = rng.random()
        if draw < noise.early_close * self._share:
            out[:, 6] = 0.0
        elif draw > 1.0 - noise.drop * self._share:
            out[:, 6] = 1.0
        return out


def reduce(image: Image) -> Image:
    """Half the width and height by averaging, (H/2, W/2, 3) uint8."""
    h, w = image.shape[0] // REDUCE, image.shape[1] // REDUCE
    cells = image[: h * REDUCE, : w * REDUCE].reshape(h, REDUCE, w, REDUCE, 3).astype(np.uint16)
    return np.asarray((cells.sum((1, 3)) + 2) // (REDUCE * REDUCE), np.uint8)


def seen_camera(world: World, view: str) -> CameraModel:
    """The camera of a view for pixels of what the policy sees of it."""
    camera, seen = world.camera(view), world.embodiment.views.get(view, View())
    k = camera_view.intrinsics(seen, camera.K, camera.width, camera.height)
    width, height = camera_view.size(seen, camera.width, camera.height)
    return replace(camera, K=k, width=width, height=height)


def project(camera: CameraModel, scene: SceneState) -> Array:
    """(N, 2) places of the objects in a picture, 0..1 from its top left corner; nan when it does not show them."""
    where = np.array([anchor(scene, name) for name in scene.objects]).reshape(-1, 3)
    pixels, depth = camera.project(where)
    uv = (pixels + 0.5) / (camera.width, camera.height)
    hidden = (depth <= 0.0) | (uv < 0.0).any(axis=1) | (uv > 1.0).any(axis=1)
    uv[hidden] = np.nan
    return np.asarray(uv, np.float32)


def anchor(scene: SceneState, name: str) -> Array:
    """(3,) point that stands for an object [m]: its centre, of a drawer the middle of its tray."""
    thing = scene.objects[name]
    return tray_centre(thing) if thing.category == 'drawer' else np.asarray(thing.pose[:3, 3])


def sample_randomization(seed: int, alike: float = 0.0) -> Randomization:
    """Randomisation of one training episode, wider than that of the demo."""
    rng = np.random.default_rng([seed, 11])
    return Randomization(
        light=float(rng.uniform(0.2, 0.6)),
        color=float(rng.uniform(0.03, 0.08)),
        table=float(rng.uniform(0.2, 0.6)),
        camera=float(rng.choice([0.0, 0.0, 0.01, 0.02])),
        distractors=int(rng.choice([1, 2, 2, 3, 3])),
        alike=alike,
    )


def training_task(task: str, seed: int, alike: float = 0.0) -> Task:
    """Episode ``seed`` of a task with its own randomisation; fewer distractors when they do not fit.

    Args:
        alike: share of distractors in the colour of the target, from which only the shape or the size tells it.
    """
    wanted = sample_randomization(seed, alike)
    while True:
        try:
            return make_episode(task, seed, randomization=wanted)
        except TaskError:
            if wanted.distractors == 0:
                raise
            wanted = replace(wanted, distractors=wanted.distractors - 1)


def dataset_meta(name: str, sim: Sim, embodiment: Embodiment, settings: PolicySettings) -> Meta:
    """Meta data of a dataset of demonstrations."""
    views = {c.view: (c.width // REDUCE, c.height // REDUCE) for c in sim.cameras if c.view in embodiment.views}
    return Meta(
        name,
        embodiment.name,
        1.0 / settings.chunk_rate,
        views,
        frame_id=embodiment.base_frame,
        notes='scripted expert in simulation, disturbed; extras/chunks are its undisturbed plans',
        chunk_period=settings.step_period,
    )


def demonstrate(
    task: Task,
    *,
    sim: Sim,
    embodiment: Embodiment,
    control: Control,
    settings: PolicySettings,
    world: World,
    kinematics: Kinematics,
    noise: Noise,
    quality: int = 95,
) -> Episode:
    """Run one demonstration. Frames are ``1 / chunk_rate`` apart, chunk steps ``step_period``.

    ``extras``: chunks (T, H, 7); objects (T, N, 3) [m]; points_<view> (T, N, 2) 0..1; held (T,) index or -1.
    """
    expert = DisturbedExpert(settings, noise, world, task.seed)
    result = run_episode(
        task,
        expert,
        sim=sim,
        embodiment=embodiment,
        control=control,
        policy_settings=settings,
        views=True,
        world=world,
        kinematics=kinematics,
        linger=0.8,
    )
    samples = expert.samples
    ends = next((k for k, s in enumerate(samples) if s.done), len(samples))
    return to_episode(task, samples[: ends + 3], 1.0 / settings.chunk_rate, result.success, quality)


def still_life(task: Task, world: World, embodiment: Embodiment, kinematics: Kinematics, period: float) -> Episode:
    """One frame of a scene at rest, for learning words."""
    world.reset(task.scene)
    state = world.robot_state(1)
    scene = replace(
        world.scene_state(1),
        task=task.task,
        target=task.target,
        destination=task.destination,
        instruction=task.instruction,
    )
    views = {
        c.view: camera_view.prepare(embodiment.views[c.view], world.render(c.view))
        for c in world.sim.cameras
        if c.view in embodiment.views
    }
    tcp = kinematics.forward(state.q)
    proprio = np.zeros(8)
    proprio[:6], proprio[7] = xyz_rpy_from_pose(tcp), state.gripper
    seen = Observation(1, {v: reduce(i) for v, i in views.items()}, proprio, state.q, state.dq, '', task.instruction)
    points = {v: project(seen_camera(world, v), scene) for v in views}
    sample = Sample(seen, scene, np.zeros((1, 7)), '', 'still', False, points)
    return to_episode(task, [sample], period, None, 95)


def to_episode(task: Task, samples: list[Sample], period: float, success: bool | None, quality: int) -> Episode:
    """Episode of the data format from the samples of one run."""
    names = [o.name for o in task.scene.objects]
    proprio = np.array([s.seen.proprio for s in samples])
    actions = np.zeros((len(samples), 7))
    poses = [pose_from_xyz_rpy(p[:6]) for p in proprio]
    for k in range(len(samples) - 1):
        actions[k, :6] = delta_between(poses[k], poses[k + 1])
    actions[:, 6] = [s.steps[0, 6] for s in samples]
    extras: dict[str, Array] = {
        'chunks': np.array([s.steps for s in samples], np.float32),
        'objects': np.array([[anchor(s.scene, n) for n in names] for s in samples], np.float32),
        'held': np.array([names.index(s.scene.held) if s.scene.held in names else -1 for s in samples]),
    }
    for view in samples[0].points:
        extras[f'points_{view}'] = np.array([s.points[view] for s in samples])
    info: dict[str, Any] = {
        'task': task.task,
        'seed': task.seed,
        'target': names.index(task.target),
        'destination': names.index(task.destination) if task.destination else -1,
        'relation': task.relation,
        'objects': [
            {'name': o.name, 'category': o.category, 'color': o.color, 'size': o.size} for o in task.scene.objects
        ],
        'phases': [s.phase for s in samples],
        'sentences': [s.sentence for s in samples],
    }
    return Episode(
        id=f'{task.task}-{task.seed:06d}',
        instruction=task.instruction,
        step_period=period,
        stamps_ns=np.array([s.seen.stamp_ns for s in samples]),
        proprio=proprio,
        q=np.array([s.seen.q for s in samples]),
        dq=np.array([s.seen.dq for s in samples]),
        actions=actions,
        views={v: Frames.encode([s.seen.views[v] for s in samples], quality) for v in samples[0].seen.views},
        success=success,
        source='simulation',
        annotations={'alt_instruction': alt_instruction(task, np.random.default_rng([task.seed, 13]))},
        info=info,
        extras=extras,
    )
