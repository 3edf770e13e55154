from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('mujoco')
pytest.importorskip('pinocchio')

from instructvla_ros import config, resources
from instructvla_ros import settings as s
from instructvla_ros.control.kinematics import Kinematics
from instructvla_ros.errors import SetupError, TaskError
from instructvla_ros.evaluation.baseline import RandomPolicy
from instructvla_ros.evaluation.rollout import Disturbance, run_episode
from instructvla_ros.policy import HoldPolicy
from instructvla_ros.policy_expert import ExpertPolicy
from instructvla_ros.sim.tasks import TASKS, episode_from_instruction, make_episode
from instructvla_ros.sim.world import World

EMBODIMENT = config.load(s.Embodiment, resources.config_file('franka.yaml'))
SIM = config.load(s.Sim, resources.config_file('sim.yaml'))
CONTROL = config.load(s.Control, resources.config_file('controller.yaml'))
POLICY = config.load(s.PolicySettings, resources.config_file('policy.yaml'))


@pytest.fixture(scope='module')
def cell():
    world = World(SIM, EMBODIMENT, render=False)
    yield {'world': world, 'kinematics': Kinematics(EMBODIMENT)}
    world.close()


def run(cell, episode, policy, **changes):
    settings = {'sim': SIM, 'embodiment': EMBODIMENT, 'control': CONTROL, 'policy_settings': POLICY, **cell, **changes}
    return run_episode(episode, policy, **settings)


def expert():
    return ExpertPolicy(POLICY.step_period, POLICY.horizon)


def test_the_expert_puts_a_cube_in_the_bowl_through_the_real_control_path(cell):
    moments = []
    result = run(cell, episode_from_instruction('put the red cube in the bowl', 1), expert(), record=moments.append)
    assert result.success
    assert result.done
    assert (result.failure, result.detail, result.progress) == ('', '', 1.0)
    assert (result.task, result.policy) == ('put', 'expert')
    assert 3.0 < result.time < 15.0
    assert result.chunks > 10
    assert result.table_touches == 0
    assert 0.5 < result.path_length < 3.0
    times = [m.time for m in moments]
    assert np.allclose(np.diff(times), 1.0 / CONTROL.rate)
    assert sum(m.chunk is not None for m in moments) == result.chunks
    assert any(m.reasoning is not None and m.reasoning.text.startswith('I will') for m in moments)
    assert all(m.observation.views == {} for m in moments if m.observation is not None)
    seen = [
        (m.time, (m.observation.privileged.stamp_ns - m.observation.stamp_ns) * 1e-9) for m in moments if m.observation
    ]
    assert all(abs(lag) <= 0.06 for _, lag in seen)


def test_the_same_episode_gives_the_same_result(cell):
    a, b = (run(cell, make_episode('pick', 3), expert()) for _ in range(2))
    assert a.time == b.time
    assert np.allclose(a.path, b.path, atol=1e-9)


@pytest.mark.parametrize('task', ['pick', 'stack', 'move_near', 'open_drawer', 'close_drawer'])
def test_the_expert_solves_the_other_tasks_too(cell, task):
    assert run(cell, make_episode(task, 0), expert()).success


@pytest.mark.parametrize(
    'disturbance',
    [Disturbance(latency=0.3), Disturbance(translation=0.003, rotation=0.01, drop=0.1)],
)
def test_latency_noise_and_lost_chunks(cell, disturbance):
    assert run(cell, make_episode('pick', 0), expert(), disturbance=disturbance).success


@pytest.mark.parametrize('task', TASKS)
def test_doing_nothing_scores_nothing(cell, task):
    episode = replace(make_episode(task, 11), time_limit=2.0)
    result = run(cell, episode, HoldPolicy(POLICY.step_period, POLICY.horizon))
    assert not result.success
    assert result.best_progress < 0.02
    assert result.failure == 'not_reached'
    assert result.time == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize('task', TASKS)
def test_wandering_at_random_scores_nothing(cell, task):
    episode = replace(make_episode(task, 12), time_limit=6.0)
    result = run(cell, episode, RandomPolicy(POLICY, seed=12), views=False)
    assert not result.success
    assert result.path_length > 0.3, 'it has to move to be a baseline'


class Scripted:
    """A policy made of a function; not privileged, so it must never see the ground truth."""

    name, privileged, checkpoint_revision = 'scripted', False, ''

    def __init__(self, change):
        self.inner, self.change, self.seen = HoldPolicy(POLICY.step_period, POLICY.horizon), change, []

    def reset(self):
        self.seen.clear()

    def think(self, observation):
        return None

    def infer(self, observation, reasoning):
        self.seen.append(observation)
        return self.change(self.inner.infer(observation, reasoning))


def test_chunks_that_are_refused_are_counted_and_named(cell):
    def broken(chunk):
        return replace(chunk, steps=np.full_like(chunk.steps, np.nan))

    policy = Scripted(broken)
    result = run(cell, replace(make_episode('pick', 0), time_limit=1.0), policy, views=False)
    assert result.failure == 'refused'
    assert result.chunks == 0
    assert Counter(result.verdicts)['finite/refused'] > 0
    assert policy.seen
    assert all(o.privileged is None and o.views == {} for o in policy.seen)


def test_a_wrong_object_is_named(cell):
    episode = make_episode('pick', 1)
    other = next(o for o in episode.scene.objects if o.name != episode.target and o.size)

    class Wrong(ExpertPolicy):
        def infer(self, observation, reasoning):
            scene = replace(observation.privileged, target=other.name)
            return super().infer(replace(observation, privileged=scene), reasoning)

    result = run(cell, replace(episode, time_limit=9.0), Wrong(POLICY.step_period, POLICY.horizon))
    assert not result.success
    assert result.failure == 'wrong_object'
    assert other.name in result.detail


def test_errors_of_the_policy_are_not_hidden(cell):
    def lost(chunk):
        raise TaskError('lost')

    with pytest.raises(TaskError, match='lost'):
        run(cell, replace(make_episode('pick', 0), time_limit=1.0), Scripted(lost), views=False)


def test_a_policy_with_eyes_gets_pictures():
    policy = Scripted(lambda chunk: chunk)
    try:
        run_episode(
            replace(make_episode('pick', 0), time_limit=0.4),
            policy,
            sim=SIM,
            embodiment=EMBODIMENT,
            control=CONTROL,
            policy_settings=POLICY,
        )
    except SetupError as err:
        pytest.skip(f'no OpenGL: {err}')
    assert policy.seen
    for observation in policy.seen:
        assert set(observation.views) == set(EMBODIMENT.views)
        assert all(image.std() > 5.0 for image in observation.views.values())
