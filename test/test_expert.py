from collections import deque
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from kinematic_world import HOME, KinematicWorld
from scipy.spatial.transform import Rotation

from instructvla_ros.datatypes import SceneState
from instructvla_ros.errors import TaskError
from instructvla_ros.geometry import pose, rotation_angle
from instructvla_ros.sim import relations as rel
from instructvla_ros.sim import scene as sc
from instructvla_ros.sim.expert import ScriptedExpert
from instructvla_ros.sim.expert_grasp import grasp_of, release_of
from instructvla_ros.sim.expert_motion import Pace, downward, wrap, yaw_of
from instructvla_ros.sim.expert_phases import relation_of
from instructvla_ros.sim.monitor import TaskMonitor
from instructvla_ros.sim.tasks import TASKS, episode_from_instruction, make_episode


def solve(episode, period=0.1, horizon=8, execute=2, age=0, world=None, disturb=None, each=None):
    """Closed loop on the stand-in; ``age``: control steps by which the state is old, elapsed steps are skipped."""
    world = world or KinematicWorld(episode)
    monitor, expert = TaskMonitor(episode), ScriptedExpert(period, horizon)
    scene = monitor.update(world.state())
    seen = deque([scene] * (age + 1), maxlen=age + 1)
    progress = []
    while scene.elapsed < episode.time_limit:
        plan = expert.plan(seen[0])
        for k in range(execute):
            world.step(plan.steps[min(k + age, horizon - 1)], period)
            if disturb is not None:
                disturb(world)
            scene = monitor.update(world.state())
            seen.append(scene)
            progress.append(scene.progress)
            if each is not None:
                each(scene, plan)
        if scene.success and plan.done:
            break
    return scene, world, progress


@pytest.mark.parametrize('task', TASKS)
def test_solves_every_task_and_says_so(task):
    for seed in range(5):
        scene, _, progress = solve(make_episode(task, seed))
        assert scene.success, seed
        assert scene.elapsed < 15.0, seed
        assert progress[-1] == 1.0
        assert all(b >= a - 0.35 for a, b in zip(progress, progress[1:], strict=False))


@pytest.mark.parametrize(
    ('period', 'horizon', 'execute'), [(0.1, 8, 1), (0.1, 8, 8), (0.2, 8, 1), (0.2, 8, 4), (0.1, 16, 3)]
)
@pytest.mark.parametrize('task', ['put', 'open_drawer'])
def test_any_share_of_a_plan_may_be_executed(task, period, horizon, execute):
    for seed in range(2):
        assert solve(make_episode(task, seed), period, horizon, execute)[0].success, seed


@pytest.mark.parametrize('age', [1, 2, 3])
@pytest.mark.parametrize('task', ['pick', 'put', 'stack', 'close_drawer'])
def test_old_states(task, age):
    for seed in range(2):
        assert solve(make_episode(task, seed), age=age)[0].success, seed


@pytest.mark.parametrize('seed', range(4))
def test_a_target_that_is_moved_meanwhile(seed):
    episode = make_episode('put', seed)
    moved = []

    def push(world):
        obj = world.objects[episode.target]
        if not moved and np.linalg.norm(world.tcp[:3, 3] - obj.pose[:3, 3]) < 0.05 and not world.held:
            moved.append(1)
            matrix = obj.pose.copy()
            matrix[:2, 3] += (0.05, -0.04)
            world.objects[obj.name] = replace(obj, pose=matrix)

    scene, _, _ = solve(episode, disturb=push)
    assert moved
    assert scene.success


@pytest.mark.parametrize('task', ['pick', 'put', 'stack'])
def test_a_slipped_object_is_fetched_again(task):
    episode = make_episode(task, 2)
    slips = []

    def slip(world):
        if world.held and world.objects[world.held].pose[2, 3] > 0.055 and len(slips) < 2:
            slips.append(1)
            world._drop()
            world.gripper = 0.0

    scene, _, _ = solve(episode, disturb=slip)
    assert len(slips) == 2
    assert scene.success


def test_a_wrong_object_in_the_hand_is_set_down_on_the_table_first():
    episode = make_episode('pick', 3)
    world = KinematicWorld(episode)
    other = next(o for o in world.objects.values() if o.name != episode.target and o.category in sc.GRASPABLE)
    world.tcp = pose([0.5, 0.0, 0.2], Rotation.from_matrix(downward(0.0)))
    world.objects[other.name] = replace(other, pose=pose([0.5, 0.0, 0.2]))
    world.held, world.gripper = other.name, float(other.extent[0]) / 0.08
    scene, _, _ = solve(episode, world=world)
    assert scene.success
    assert rel.on_table(scene.objects[other.name])


@pytest.mark.parametrize('seed', range(6))
def test_start_anywhere_with_a_closed_hand(seed):
    rng = np.random.default_rng(seed)
    episode = make_episode('stack', seed)
    world = KinematicWorld(
        episode,
        pose(rng.uniform((0.42, -0.3, 0.1), (0.68, 0.3, 0.4)), Rotation.from_matrix(downward(rng.uniform(-1, 1)))),
    )
    world.gripper = 0.0
    assert solve(episode, world=world)[0].success


def test_the_hand_still_pushes_when_the_drawer_meets_its_stop():
    """Whoever learns to creep up to the stop leaves the drawer a little open."""
    slowest = []

    def watch(scene, plan):
        if plan.phase == 'push' and scene.objects['drawer'].opening < 0.02:
            slowest.append(float(np.linalg.norm(plan.steps[0, :2])))

    assert solve(make_episode('close_drawer', 3), each=watch)[0].success
    assert slowest and min(slowest) > 0.006, 'metres per tenth of a second'


def test_put_in_the_drawer_opens_it_when_it_is_shut():
    episode = episode_from_instruction('put the red cube in the drawer', 1)
    world = KinematicWorld(episode)
    world.objects['drawer'] = replace(world.objects['drawer'], opening=0.0)
    scene, _, _ = solve(episode, world=world)
    assert scene.success
    assert scene.objects['drawer'].opening > 0.09


@cache
def states(task):
    out = []
    for seed in range(3):
        solve(make_episode(task, seed), each=lambda scene, plan: out.append(scene))
    return out[::4]


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('period', [0.05, 0.2])
def test_plans_are_pure_bounded_and_spoken(task, period):
    pace, expert = Pace(), ScriptedExpert(period, 8)
    for scene in states(task):
        before = scene.tcp_pose.copy()
        plan, again = expert.plan(scene), expert.plan(scene)
        assert np.array_equal(plan.steps, again.steps)
        assert np.array_equal(scene.tcp_pose, before)
        assert plan.steps.shape == (8, 7)
        assert np.all(np.isfinite(plan.steps))
        fastest = max(pace.around, pace.radial, pace.vertical)
        assert np.linalg.norm(plan.steps[:, :3], axis=1).max() <= fastest * period + 1e-9
        turns = [Rotation.from_euler('xyz', s[3:6]).magnitude() for s in plan.steps]
        assert max(turns) <= pace.spin * period + 1e-9
        assert set(np.unique(plan.steps[:, 6])) <= {0.0, 1.0}
        assert plan.sentence.startswith(('I will', 'The '))
        assert plan.sentence.endswith('.')


@pytest.mark.parametrize('task', TASKS)
def test_a_plan_never_closes_again_after_it_has_let_go(task):
    """A release that a plan takes back would throw the object."""
    for scene in states(task):
        steps = ScriptedExpert(0.1, 8).plan(scene).steps
        if scene.held in (scene.target, '') and scene.target in scene.objects and steps[0, 6] == 1.0:
            near = np.linalg.norm(scene.objects[scene.target].pose[:3, 3] - scene.tcp_pose[:3, 3]) < 0.03
            if near and scene.progress >= 0.5:
                assert steps[:, 6].min() == 1.0


@pytest.mark.parametrize(
    ('category', 'destination', 'task'),
    [
        (c, d, t)
        for c in sc.GRASPABLE
        for d, t in (('bowl', 'put'), ('plate', 'put'), ('drawer', 'put'), ('cube', 'stack'), ('plate', 'move_near'))
        if t != 'stack' or c == 'cube'
    ],
)
@pytest.mark.parametrize('size', sc.SIZES)
def test_what_is_let_go_counts_as_placed(category, destination, task, size):
    """Otherwise the hand would close on the object again while it falls."""
    target = sc.make_object(category, 'red', size, (0.45, 0.2))
    opening = {'opening': 0.14} if destination == 'drawer' else {}
    where = sc.make_object(
        destination,
        'blue' if destination != 'drawer' else '',
        'large' if task == 'stack' else '',
        (0.71 if destination == 'drawer' else 0.5, 0.0),
        **opening,
    )
    objects = rel.scene_objects(sc.SceneSpec((target, where)))
    a, b = objects[target.name], objects[where.name]
    start = SceneState(0, objects, pose(a.pose[:3, 3], Rotation.from_matrix(downward(0.0))), 0.5, held=a.name)
    relation = relation_of(task, b)
    place, yaw = release_of(start, a, b, relation)
    for error in np.random.default_rng(0).uniform(-0.0042, 0.0042, (20, 3)):
        there = replace(a, pose=pose(place + error))
        assert rel.placed(there, b, relation), (place, error)
        tcp = pose(place + error, Rotation.from_matrix(downward(yaw)))
        for held in (a.name, ''):
            scene = replace(
                start,
                objects={**objects, a.name: there},
                tcp_pose=tcp,
                held=held,
                task=task,
                target=a.name,
                destination=b.name,
            )
            plan = ScriptedExpert(0.1, 8).plan(scene)
            assert plan.steps[:, 6].min() == 1.0
            assert plan.phase == 'release'


@pytest.mark.parametrize('degrees', [-80, -50, -30, 0, 10, 44, 46, 80, 135])
def test_grasps_are_aligned_with_the_faces_by_the_shortest_turn(degrees):
    spec = sc.make_object('cube', 'red', yaw=np.deg2rad(degrees))
    objects = rel.scene_objects(sc.SceneSpec((spec,)))
    grasp = grasp_of(objects[spec.name], objects, 0.0)
    assert abs(wrap(grasp.yaw - np.deg2rad(degrees), np.pi / 2)) < 1e-6
    assert abs(grasp.yaw) <= np.pi / 4 + 1e-6


def test_a_cylinder_that_lies_is_taken_across_its_axis():
    spec = sc.make_object('cylinder', 'red')
    obj = rel.scene_objects(sc.SceneSpec((spec,)))[spec.name]
    axis = np.deg2rad(30)
    lying = replace(
        obj, pose=pose([0.5, 0.0, 0.02], Rotation.from_euler('z', axis) * Rotation.from_euler('y', np.pi / 2))
    )
    assert abs(wrap(grasp_of(lying, {}, 0.0).yaw - axis, np.pi)) < 1e-6


def test_fingers_avoid_a_neighbour():
    target = sc.make_object('cube', 'red', xy=(0.5, 0.0))
    beside = sc.make_object('cube', 'blue', xy=(0.5, 0.055))
    objects = rel.scene_objects(sc.SceneSpec((target, beside)))
    assert abs(abs(grasp_of(objects['red_cube'], objects, 0.0).yaw) - np.pi / 2) < np.deg2rad(16)


@pytest.mark.parametrize('task', ['put', 'stack', 'move_near', 'pick'])
def test_nothing_else_is_touched(task):
    """Fingertips and whatever they carry stay over every other object they pass."""
    for seed in range(5):
        episode = make_episode(task, seed)
        lowest = []

        def check(scene, plan, episode=episode, lowest=lowest):
            tip = scene.tcp_pose[2, 3] - 0.009
            if scene.held:
                tip = min(tip, rel.bottom(scene.objects[scene.held]))
            for o in scene.objects.values():
                if o.name in (episode.target, episode.destination):
                    continue
                if np.hypot(*(o.pose[:2, 3] - scene.tcp_pose[:2, 3])) < rel.radius(o) + 0.02:
                    lowest.append(tip - rel.top(o))

        assert solve(episode, each=check)[0].success
        assert not lowest or min(lowest) > 0.01, seed


def test_the_hand_arrives_upright():
    episode = make_episode('pick', 0)
    world = KinematicWorld(episode, HOME @ pose([0, 0, 0], Rotation.from_euler('xyz', [0.3, -0.2, 0.4])))
    tilt = []
    solve(
        episode,
        world=world,
        each=lambda scene, plan: tilt.append(
            (plan.phase, rotation_angle(scene.tcp_pose, downward(yaw_of(scene.tcp_pose))))
        ),
    )
    assert max(t for phase, t in tilt if phase in ('close', 'lift')) < 0.05


def test_a_scene_without_a_task_is_refused():
    with pytest.raises(TaskError, match='no task'):
        ScriptedExpert(0.1, 8).plan(SceneState(0, {}, HOME, 1.0), 'pick up the red cube')
    with pytest.raises(TaskError, match="no object 'red_cube'"):
        ScriptedExpert(0.1, 8).plan(SceneState(0, {}, HOME, 1.0, task='pick', target='red_cube'))
    with pytest.raises(ValueError, match='positive'):
        ScriptedExpert(0.0, 8)


class TestMonitor:
    def episode_and_state(self, task='put', seed=0):
        episode = make_episode(task, seed)
        return episode, KinematicWorld(episode).state()

    def placed(self, episode, scene):
        target, where = scene.objects[episode.target], scene.objects[episode.destination]
        height = {'bowl': 0.007, 'plate': 0.006}[where.category] + target.extent[2] / 2
        matrix = target.pose.copy()
        matrix[:3, 3] = (*where.pose[:2, 3], height)
        return replace(scene, objects={**scene.objects, target.name: replace(target, pose=matrix)})

    @pytest.mark.parametrize('task', TASKS)
    def test_no_seed_is_done_at_its_start(self, task):
        for seed in range(200):
            episode = make_episode(task, seed)
            monitor, world = TaskMonitor(episode), KinematicWorld(episode)
            for k in range(4):
                scene = monitor.update(replace(world.state(), stamp_ns=k * 300_000_000))
                assert not scene.success
                assert scene.progress < 0.05

    def test_success_takes_time_at_rest(self):
        episode, start = self.episode_and_state()
        monitor = TaskMonitor(episode)
        monitor.update(start)
        there = self.placed(episode, start)
        assert not monitor.update(replace(there, stamp_ns=100_000_000)).success
        assert monitor.update(replace(there, stamp_ns=200_000_000)).progress == 0.9
        done = monitor.update(replace(there, stamp_ns=450_000_000))
        assert done.success
        assert done.progress == 1.0
        assert (done.task, done.target, done.elapsed) == ('put', episode.target, pytest.approx(0.45))

    def test_a_held_object_is_not_placed(self):
        episode, start = self.episode_and_state()
        monitor = TaskMonitor(episode)
        monitor.update(start)
        there = replace(self.placed(episode, start), held=episode.target)
        for k in range(1, 10):
            assert not monitor.update(replace(there, stamp_ns=k * 100_000_000)).success

    def test_a_rolling_object_is_not_placed(self):
        episode, start = self.episode_and_state()
        monitor = TaskMonitor(episode)
        monitor.update(start)
        there = self.placed(episode, start)
        for k in range(1, 10):
            target = there.objects[episode.target]
            matrix = target.pose.copy()
            matrix[0, 3] += 0.015 * (-1) ** k
            rolling = replace(there, objects={**there.objects, target.name: replace(target, pose=matrix)})
            assert not monitor.update(replace(rolling, stamp_ns=k * 100_000_000)).success

    def test_a_lifted_object_has_to_be_held(self):
        episode, start = self.episode_and_state('pick')
        monitor = TaskMonitor(episode)
        monitor.update(start)
        target = start.objects[episode.target]
        matrix = target.pose.copy()
        matrix[2, 3] += 0.06
        up = replace(start, objects={**start.objects, target.name: replace(target, pose=matrix)})
        for k in range(1, 6):
            assert not monitor.update(replace(up, stamp_ns=k * 200_000_000)).success
        for k in range(6, 9):
            last = monitor.update(replace(up, stamp_ns=k * 200_000_000, held=target.name))
        assert last.success

    def test_an_episode_without_its_object_is_refused(self):
        episode, _ = self.episode_and_state()
        with pytest.raises(TaskError, match='no object'):
            TaskMonitor(replace(episode, target='unicorn'))
