"""Which topics a demonstration consists of, for a robot."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from ..errors import ConfigError, suggest
from ..settings import Embodiment
from .recording_status import Watched

NAMESPACE = '/instructvla'
_OWN = ('instruction', 'current_instruction', 'action_chunk', 'reasoning')


def absolute(name: str, namespace: str = NAMESPACE) -> str:
    """Full name of a topic; relative ones are under the namespace."""
    return name if name.startswith('/') else f'{namespace.rstrip("/")}/{name}'


def watched_topics(
    robot: Embodiment,
    more: Sequence[str] = (),
    skip: Sequence[str] = (),
    resolve: Callable[[str], str] = absolute,
) -> list[Watched]:
    """Topics to record, in the order of their weight.

    Cameras, their calibration and the joint states are required. What the policy and the controller say, the commands
    to the arm, the robot description, transforms and the simulator's state are taken when they are there.

    Args:
        more: further topics; they are required, because somebody asked for them. skip: topics to leave out.
        resolve: full name of a relative one.

    Raises:
        ConfigError: ``skip`` names none of the topics.
    """
    found = [Watched(view.topic, True, True) for view in robot.views.values() if view.topic]
    found += [Watched(view.info_topic, True, True) for view in robot.views.values() if view.info_topic]
    topics = robot.topics
    found += [
        Watched(topics.joint_states, True, True),
        Watched(topics.joint_trajectory),
        Watched(topics.gripper_command),
        Watched(topics.robot_description),
        *(Watched(name) for name in _OWN),
        Watched('controller_state', True),
        Watched('/sim/state', True),
        Watched('/tf', True),
        Watched('/tf_static'),
    ]
    found += [Watched(name, False, True) for name in more]
    out: dict[str, Watched] = {}
    for topic in found:
        name = resolve(topic.name)
        before = out.get(name, topic)
        out[name] = Watched(name, before.periodic, before.required or topic.required)
    for name in map(resolve, skip):
        if name not in out:
            raise ConfigError(f'skip: {name} would not be recorded anyway.{suggest(name, out)}')
        del out[name]
    return list(out.values())


def bag_command(topics: Sequence[Watched], storage: str = 'mcap', out: str = '') -> str:
    """The command of ros2 that records the same topics, for a shell."""
    words = ['ros2', 'bag', 'record', '-s', storage, *(['-o', out] if out else []), '--topics']
    return shlex.join([*words, *(topic.name for topic in topics)])
