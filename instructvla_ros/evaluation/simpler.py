"""The evaluation loop for SimplerEnv and SimplerEnv-Instruct: every trial of every launch, one line per episode.

The simulator is not a dependency: it is imported when a run begins. An interrupted run continues where it stopped.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..datatypes import Image
from ..errors import ConfigError, SetupError, TaskError
from . import runlog
from .simpler_policy import SimplerPolicy
from .simpler_tasks import Launch, Suite, Trial, resolve_env
from .video import VideoWriter

RESULTS, RUN = 'episodes.jsonl', 'run.json'
VIDEO, VIDEO_RATE = 'camera', 5.0
INSTALL = """SimplerEnv is not installed here ({reason}).
It needs an NVIDIA GPU with Vulkan, Python 3.10 or 3.11 and numpy below 2, so give it an environment of its own:
  python3.10 -m venv simpler && . simpler/bin/activate
  git clone --recurse-submodules https://github.com/simpler-env/SimplerEnv
  pip install 'numpy<2' -e SimplerEnv/ManiSkill2_real2sim -e SimplerEnv
  pip install '.[model]'        (in the checkout of instructvla_ros, with INSTRUCTVLA_MESSAGES=off)
SimplerEnv-Instruct and checkpoints that read the arm state need the authors' fork instead of ManiSkill2_real2sim:
  git clone https://github.com/YangS03/my_maniskill && pip install -e my_maniskill
`instructvla evaluate simpler --list` shows the task lists without it."""


class Environment(Protocol):
    """What the loop uses of an environment of SimplerEnv (gymnasium's interface and the methods of ``unwrapped``)."""

    @property
    def unwrapped(self) -> Any:
        """The environment under its wrappers: ``get_language_instruction``, ``is_final_subtask``."""
        ...

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Observation, reward, done, truncated, info."""

    def close(self) -> None:
        """Free the renderer."""


class SimplerEnv:
    """The installed simulator.

    Raises:
        SetupError: not installed, or without its environments; the message says what to install.
    """

    def __init__(self) -> None:
        try:
            importlib.import_module('simpler_env')
            self._envs = importlib.import_module('mani_skill2_real2sim')
            self._gym = importlib.import_module('gymnasium')
        except Exception as err:  # the renderer's libraries fail in many ways when a driver is missing
            raise SetupError(INSTALL.format(reason=f'{type(err).__name__}: {err}'.splitlines()[0])) from err

    def registered(self) -> list[str]:
        """Ids of every environment."""
        return list(self._gym.envs.registry)

    def make(self, launch: Launch) -> Environment:
        """Build the environment of a launch.

        Raises:
            TaskError: no such environment is registered. SetupError: the photograph behind the scene is missing.
        """
        arguments = build_arguments(launch)
        if launch.overlay:
            arguments['rgb_overlay_path'] = str(self._overlay(launch.overlay))
            arguments['rgb_overlay_cameras'] = [launch.camera]
        made: Environment = self._gym.make(resolve_env(launch, self.registered()), **arguments)
        return made

    def _overlay(self, name: str) -> Path:
        root = getattr(self._envs, 'ASSET_DIR', None) or Path(str(self._envs.__file__)).resolve().parents[1] / 'data'
        file = Path(root) / 'real_inpainting' / name
        if not file.is_file():
            raise SetupError(f'{file} is missing: it belongs to ManiSkill2_real2sim, clone it with its data folder')
        return file


def build_arguments(launch: Launch) -> dict[str, Any]:
    """Arguments of ``gymnasium.make`` for a launch, without the photograph."""
    return {
        'obs_mode': 'rgbd',
        'robot': launch.robot,
        'sim_freq': launch.sim_freq,
        'control_mode': launch.control_mode,
        'control_freq': launch.control_freq,
        'max_episode_steps': launch.max_steps,
        'scene_name': launch.scene,
        'camera_cfgs': {'add_segmentation': True},
        'rgb_overlay_path': None,
        **launch.build,
    }


def image_of(observation: Any, camera: str) -> Image:
    """RGB (H, W, 3) uint8 of a camera.

    Raises:
        SetupError: the observation has no such picture.
    """
    try:
        return np.ascontiguousarray(observation['image'][camera]['rgb'], dtype=np.uint8)
    except (KeyError, TypeError, IndexError):
        have = (
            ', '.join(observation.get('image', {})) if isinstance(observation, Mapping) else type(observation).__name__
        )
        raise SetupError(f'the observation has no picture image/{camera}/rgb, only: {have or "none"}') from None


def eef_of(observation: Any) -> Any:
    """``agent.eef_pos`` of an observation, None where the installed simulator has none."""
    agent = observation.get('agent') if isinstance(observation, Mapping) else None
    return agent.get('eef_pos') if isinstance(agent, Mapping) else None


@dataclass(frozen=True)
class Episode:
    """How one trial went. ``success``: at the last step, as SimplerEnv counts. ``solved_at``: first step it held."""

    success: bool
    steps: int
    instructions: tuple[str, ...]
    sentences: tuple[tuple[int, str], ...]
    solved_at: int | None
    stats: dict[str, Any] = field(default_factory=dict)


def run_episode(
    env: Environment, policy: SimplerPolicy, launch: Launch, trial: Trial, frames: list[Image] | None = None
) -> Episode:
    """One trial: until the environment truncates, as in SimplerEnv's own loop; ``frames`` collects what was seen.

    Raises:
        SetupError: no picture in the observation, or the environment does not end after its step limit.
    """
    observation, _ = env.reset(seed=0, options=trial.reset_options())
    scene = env.unwrapped
    instruction = str(scene.get_language_instruction())
    policy.reset(instruction)
    said: list[tuple[int, str]] = []
    asked, info = [instruction], dict[str, Any]()
    done, truncated, solved_at, steps = False, False, None, 0
    while not truncated:
        if steps > launch.max_steps:
            raise SetupError(f'{launch.name}: the environment went on after {launch.max_steps} steps')
        image = image_of(observation, launch.camera)
        if frames is not None:
            frames.append(image)
        _, action = policy.step(image, instruction, eef_of(observation))
        if policy.reasoning is not None and (not said or said[-1][1] != policy.reasoning.text):
            said.append((steps, policy.reasoning.text))
        if action['terminate_episode'][0] > 0:
            if scene.is_final_subtask():
                break
            scene.advance_to_next_subtask()
        command = np.concatenate([action['world_vector'], action['rot_axangle'], action['gripper']])
        observation, _, done, truncated, info = env.step(command)
        steps += 1
        if done and solved_at is None:
            solved_at = steps
        now = str(scene.get_language_instruction())
        if now != instruction:
            instruction = now
            asked.append(now)
    if frames is not None:
        frames.append(image_of(observation, launch.camera))
    stats = {k: v for k, v in dict(info.get('episode_stats', {})).items()}
    return Episode(bool(done), steps, tuple(asked), tuple(said), solved_at, runlog.plain(stats))


def write_video(file: Path, frames: Sequence[Image]) -> None:
    """Pictures of an episode to an H.264 file.

    Raises:
        VideoError: the encoder failed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = VideoWriter(file, [VIDEO], VIDEO_RATE)
    for k, frame in enumerate(frames):
        while writer.waiting > 20:  # nothing is in a hurry here: no frame may be dropped
            time.sleep(0.005)
        writer.add(VIDEO, round(k * 1e9 / VIDEO_RATE), frame)
    writer.close()


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        only: columns, tasks or launches; empty: all. seeds: policy seeds, one pass each.
        limit: trials per launch; 0: all. videos: 'failures', 'all' or 'none'.
    """

    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    limit: int = 0
    videos: str = 'failures'


class Run:
    """One run in a folder: ``run.json`` says what it is, ``episodes.jsonl`` what has been done.

    Args:
        suite: task list. folder: created; an earlier run of the same identity is continued.
        policies: from (setup name, seed) to a policy. identity: what must be equal to continue (checkpoint, settings).
        make: builds environments; :meth:`SimplerEnv.make` where it is installed.

    Raises:
        ConfigError: the folder holds another run.
    """

    def __init__(
        self,
        suite: Suite,
        folder: Path,
        policies: Callable[[str, int], SimplerPolicy],
        identity: Mapping[str, Any],
        make: Callable[[Launch], Environment],
        options: Options,
    ) -> None:
        self._suite, self._folder, self._policies, self._make = suite, folder, policies, make
        self._options = options
        self._launches = suite.choose(options.only)
        folder.mkdir(parents=True, exist_ok=True)
        claim(folder, {'suite': suite.name, **identity})
        self.rows = read_rows(folder / RESULTS)
        self.unavailable: dict[str, str] = {}

    @property
    def total(self) -> int:
        """Episodes this run wants."""
        return sum(1 for _ in self._wanted())

    def _wanted(self) -> Iterator[tuple[int, Launch, list[Trial]]]:
        for seed in self._options.seeds:
            for launch in self._launches:
                trials = launch.trials()
                for trial in trials[: self._options.limit or len(trials)]:
                    yield seed, launch, [trial]

    def missing(self) -> list[tuple[int, Launch, Trial]]:
        """What has not been done yet, launch by launch."""
        done = {row_key(r) for r in self.rows}
        return [(s, x, t) for s, x, (t,) in self._wanted() if (x.name, t.key, s) not in done]

    def run(self) -> Iterator[dict[str, Any]]:
        """Do what is missing; yields every new row. Launches whose environment is not registered are left out."""
        env: Environment | None = None
        built = ''
        with (self._folder / RESULTS).open('a', encoding='utf-8') as out:
            try:
                for seed, launch, trial in self.missing():
                    if launch.name in self.unavailable:
                        continue
                    if built != launch.name:
                        if env is not None:
                            env.close()
                        env, built = None, launch.name
                        try:
                            env = self._make(launch)
                        except TaskError as err:
                            self.unavailable[launch.name] = str(err)
                            continue
                    if env is None:
                        continue
                    row = self._episode(env, seed, launch, trial)
                    out.write(json.dumps(runlog.plain(row), allow_nan=False) + '\n')
                    out.flush()
                    self.rows.append(row)
                    yield row
            finally:
                if env is not None:
                    env.close()

    def _episode(self, env: Environment, seed: int, launch: Launch, trial: Trial) -> dict[str, Any]:
        started = time.monotonic()
        frames: list[Image] | None = [] if self._options.videos != 'none' else None
        policy = self._policies(launch.setup, seed)
        episode = run_episode(env, policy, launch, trial, frames)
        video = ''
        if frames and (self._options.videos == 'all' or not episode.success):
            name = _file_name(f'{launch.name} {trial.key} seed {seed}')
            write_video(self._folder / 'videos' / f'{name}.mp4', frames)
            video = f'videos/{name}.mp4'
        return {
            'launch': launch.name,
            'column': launch.column,
            'trial': trial.key,
            'seed': seed,
            'instructions': list(episode.instructions),
            'success': episode.success,
            'solved_at': episode.solved_at,
            'steps': episode.steps,
            'sentences': [list(s) for s in episode.sentences],
            'stats': episode.stats,
            'seconds': time.monotonic() - started,
            'video': video,
        }


def claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make a folder belong to a run, or check that it does.

    Raises:
        ConfigError: it belongs to another one, or cannot be read.
    """
    file, mine = folder / RUN, runlog.plain(dict(identity))
    if not file.exists():
        runlog.write_json(file, mine)
        return
    try:
        have = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as err:
        raise ConfigError(f'{file} is damaged ({err}); choose another folder with --out') from None
    differing = sorted(k for k in {*have, *mine} if have.get(k) != mine.get(k))
    if differing:
        what = '; '.join(f'{k} was {have.get(k)!r}, is {mine.get(k)!r}' for k in differing)
        raise ConfigError(f'{folder} holds another run: {what}. Choose another folder with --out')


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of ``episodes.jsonl``; a last line that a kill cut short is taken off the file."""
    if not file.is_file():
        return []
    text = file.read_text(encoding='utf-8')
    whole = text[: text.rfind('\n') + 1]
    if whole != text:
        file.write_text(whole, encoding='utf-8')
    try:
        return [json.loads(line) for line in whole.splitlines() if line]
    except ValueError as err:
        raise ConfigError(f'{file} is damaged: {err}; move it away or choose another folder with --out') from None


def row_key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    """What makes an episode the same one."""
    return str(row.get('launch')), str(row.get('trial')), int(row.get('seed', 0))


def _file_name(text: str) -> str:
    return ''.join(c if c.isalnum() or c in '.-' else '_' for c in text)
