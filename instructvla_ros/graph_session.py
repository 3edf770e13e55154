"""Which processes make the simulated graph, and running episodes through it."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import config, resources
from .errors import ConfigError, SetupError, TaskError, suggest
from .graph import Graph, NodeSpec, node
from .pace import check_speed, stretched_lease
from .settings import Control, Embodiment, PolicySettings

LOADING = 600.0  # weights of several gigabytes from a slow disk take minutes [s]
EPISODES, RESULTS = 'episodes_todo.jsonl', 'episodes.jsonl'


class RunError(SetupError):
    """The graph came up but could not run the episodes."""


@dataclass(frozen=True)
class EpisodeRequest:
    """One episode to run; an empty instruction takes the task's own sentence, an empty task is found from it.

    Attributes:
        said: what the policy is told instead, in any words; scene and success follow from the instruction.
    """

    task: str
    seed: int
    instruction: str = ''
    said: str = ''

    def key(self) -> tuple[str, int, str, str]:
        """What makes it the same episode as another."""
        return self.task, self.seed, self.instruction, self.said


@dataclass(frozen=True)
class GraphOptions:
    """How the graph is started.

    Attributes:
        policy, checkpoint: of the policy node. embodiment: file of config/ or path.
        record, video: keep recordings; with the cameras. time_limit: per episode [s], 0: that of the task.
        bag: record a rosbag2 bag too, into <folder>/bag. web_port: TCP port of the operator's page; None: no page.
        speed: simulated seconds per second; other than 1 makes every node follow /clock.
        parameters: further ROS parameters by node name.
    """

    policy: str = 'expert'
    checkpoint: str = ''
    embodiment: str = 'franka.yaml'
    record: bool = False
    video: bool = True
    bag: bool = False
    time_limit: float = 0.0
    web_port: int | None = None
    speed: float = 1.0
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def require_ros() -> None:
    """Raise unless the client library and our messages can be imported.

    Raises:
        SetupError: saying which one and what to do.
    """
    if importlib.util.find_spec('rclpy') is None:
        raise SetupError(
            'rclpy is not installed: this needs ROS 2. Run `make setup`, or source a ROS 2 and install again'
        )
    if importlib.util.find_spec('instructvla_ros.msg') is None:
        raise SetupError(
            'the messages of this package are not built. '
            'Run `make setup`, or build with colcon and source install/setup.bash'
        )


def check_options(options: GraphOptions) -> None:
    """Raise unless there are such a policy and such a robot, before anything is started.

    Raises:
        ConfigError, SetupError: with the nearest valid names.
    """
    choices = PolicySettings.__dataclass_fields__['policy'].metadata['choices']
    if options.policy not in choices:
        raise ConfigError(f'unknown policy {options.policy!r}.{suggest(options.policy, choices)}')
    if options.policy == 'instructvla' and not options.checkpoint:
        raise ConfigError("policy 'instructvla' needs weights: name a run directory or a hub id with --checkpoint")
    named = options.checkpoint
    shipped = resources.shipped_models()
    if named and resources.local_checkpoint(named) is None and named.count('/') != 1:
        raise ConfigError(
            f'no checkpoint at {named}: give a folder, a hub id owner/name, or one that comes with the package '
            f'({", ".join(shipped) or "none here"})'
        )
    if not 0.0 <= options.time_limit <= 3600.0:
        raise ConfigError(f'the time limit is {options.time_limit} s; give 0 (that of the task) to 3600 s')
    if options.web_port is not None and not 1 <= options.web_port <= 65535:
        raise ConfigError(f"the port of the operator's page is {options.web_port}; give 1 to 65535")
    check_speed(options.speed)
    robot = config.load(Embodiment, resources.config_file(options.embodiment))
    if not robot.views:
        raise ConfigError(f'{options.embodiment} has no views; the policy needs at least one camera')


def check_episode(request: EpisodeRequest) -> EpisodeRequest:
    """The request with its task and its sentence filled in, before anything is started.

    Raises:
        TaskError: unknown task or words, with the nearest valid ones.
    """
    from .sim.tasks import episode_from_instruction, make_episode

    if not request.task and not request.instruction:
        raise TaskError('give a task or an instruction')
    if request.task:
        episode = make_episode(request.task, request.seed, request.instruction)
    else:
        episode = episode_from_instruction(request.instruction, request.seed)
    # The sentence stays as it was asked for: the simulator samples the same one from the same seed.
    return replace(request, task=episode.task)


def in_other_words(request: EpisodeRequest, family: str) -> EpisodeRequest:
    """The request, said in words of a family that no training has seen: aggregation or situated.

    Raises:
        TaskError: unknown family, or nothing of this kind is true and unique in the scene.
    """
    from . import config, resources
    from .settings import Sim
    from .sim.annotations import instructions
    from .sim.tasks import make_episode

    sim = config.load(Sim, resources.config_file('sim.yaml'))
    episode = make_episode(request.task, request.seed, request.instruction, sim.randomization)
    rng = np.random.default_rng([request.seed, len(family)])
    found = instructions(episode, family, rng, 'held_out')
    if not found:
        raise TaskError(
            f'nothing {family} can be said about {episode.instruction!r} in scene {request.seed}; try another --seed'
        )
    kinds = sorted({phrase.kind for phrase in found})
    kind = kinds[int(rng.integers(len(kinds)))]
    same = [phrase.text for phrase in found if phrase.kind == kind]
    return replace(request, said=same[int(rng.integers(len(same)))])


def specs(options: GraphOptions, folder: Path, first: EpisodeRequest) -> list[NodeSpec]:
    """Processes of the simulated graph and of the client that runs the episodes of ``folder``."""
    embodiment = str(resources.config_file(options.embodiment).resolve())
    common = {'embodiment': embodiment}
    control = config.load(Control, resources.config_file('controller.yaml'))
    rate = float(dict(options.parameters.get('controller_node', {})).get('rate', control.rate))
    policy: dict[str, Any] = {**common, 'policy': options.policy}
    if options.checkpoint:
        local = resources.local_checkpoint(options.checkpoint)
        own_folder = local is not None and local != resources.shipped_models().get(options.checkpoint)
        policy['checkpoint'] = str(local.resolve()) if local is not None and own_folder else options.checkpoint
    own: dict[str, dict[str, Any]] = {
        'sim_node': {**common, 'task': first.task, 'seed': first.seed},
        # Every period is published, so that a command's time is known to the period and not to every other one.
        # The simulator hears the gripper's topic, whatever driver the robot has.
        'controller_node': {**common, 'state_rate': rate, 'gripper_driver': 'topic'},
        'policy_node': policy,
        'episode_node': {
            **common,
            'episodes': str((folder / EPISODES).resolve()),
            'output': str(folder.resolve()),
            'record': options.record,
            'video': options.video,
            'control_rate': rate,
            'time_limit': options.time_limit,
        },
    }
    if options.bag:
        own['record_node'] = {**common, 'out': str(folder.resolve() / 'bag')}
    if options.web_port is not None:
        own['web_node'] = {**common, 'port': options.web_port}
    if options.policy == 'instructvla':
        own['episode_node']['ready_timeout'] = LOADING
    if options.speed != 1.0:
        _slow_down(own, options.speed, control)
    for name, extra in options.parameters.items():
        if name not in own:
            raise ConfigError(f'unknown node {name!r}.{suggest(name, own)}')
        own[name].update(extra)
    client = {'piped': True, 'ends': True}
    return [node(name, values, **(client if name == 'episode_node' else {})) for name, values in own.items()]


def _slow_down(own: dict[str, dict[str, Any]], speed: float, control: Control) -> None:
    """Make simulated time run at ``speed``, and every node live in it."""
    for values in own.values():
        values['use_sim_time'] = True
    own['sim_node']['speed'] = speed
    own['policy_node']['sim_speed'] = own['episode_node']['sim_speed'] = speed
    own['controller_node']['chunk_lease'] = stretched_lease(control.chunk_lease, speed)


class Session:
    """The graph with its client; :meth:`events` runs the episodes.

    Use as a context manager; leaving it stops every process.

    Args:
        folder: of the run; gets ``log/``, ``episodes.jsonl`` and the recordings.
    """

    def __init__(self, episodes: Sequence[EpisodeRequest], folder: Path, options: GraphOptions):
        require_ros()
        check_options(options)
        self.options = options
        self.rows: list[dict[str, Any]] = []
        if options.bag and (folder / 'bag').exists():
            raise ConfigError(f'{folder / "bag"} exists; a recording never overwrites one. Choose another folder')
        folder.mkdir(parents=True, exist_ok=True)
        # `asked` is kept in the result: an interrupted evaluation finds its episodes again by it.
        lines = [
            json.dumps(
                {
                    'task': e.task,
                    'seed': e.seed,
                    'instruction': e.instruction,
                    'asked': e.instruction,
                    'said': e.said,
                    'policy': options.policy,
                    'checkpoint': options.checkpoint,
                    'speed': options.speed,
                }
            )
            for e in episodes
        ]
        (folder / EPISODES).write_text('\n'.join(lines) + '\n', encoding='utf-8')
        self.graph = Graph(specs(options, folder, episodes[0]), folder / 'log')

    def __enter__(self) -> Session:
        self.graph.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.graph.__exit__(*error)

    def events(self) -> Iterator[dict[str, Any]]:
        """Events of the episode node until it is finished; ``{'event': ''}`` now and then while it is silent.

        Raises:
            NodeDied: a process ended by itself. RunError: the episode node says that it cannot go on.
        """
        finished = False
        for line in self.graph.lines('episode_node'):
            if not line:
                yield {'event': ''}
                continue
            try:
                event = json.loads(line)
            except ValueError:
                continue  # something a library printed; not for us
            if event.get('event') == 'error':
                raise RunError(f'{event["text"]}')
            if event.get('event') == 'result':
                self.rows.append(event)
            finished = finished or event.get('event') == 'finished'
            yield event
        if not finished:
            raise RunError(
                f'the episode node ended without finishing. The end of its log:\n{self.graph.tail("episode_node")}'
            )


def read_results(file: Path) -> list[dict[str, Any]]:
    """Results of earlier episodes; a line cut off by a crash is left out."""
    if not file.is_file():
        return []
    out = []
    for line in file.read_text(encoding='utf-8').splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and 'success' in row:
            out.append(row)
    return out


def new_folder(given: str) -> Path:
    """Folder of a run: the given one, or ``runs/<stamp>`` below the working directory, not taken yet."""
    if given:
        return Path(given).expanduser().resolve()
    stamp = time.strftime('%Y%m%d-%H%M%S')
    for k in range(100):
        folder = Path('runs') / (stamp if k == 0 else f'{stamp}-{k}')
        try:
            folder.mkdir(parents=True)
            return folder.resolve()
        except FileExistsError:
            continue
        except OSError as err:
            raise SetupError(f'cannot make {folder.resolve()}: {err.strerror}. Choose a folder with --out') from err
    raise SetupError(f'runs/{stamp} and its followers are taken; choose a folder with --out')
