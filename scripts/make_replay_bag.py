#!/usr/bin/env python3
"""A small bag of the simulator for tests and examples: the scripted expert moves an object, two JPEG cameras look on.

    python scripts/make_replay_bag.py --out test/data/sim_put

It holds what a recording of the graph holds: pictures, camera infos, joint states, gripper commands, the robot
description with the cameras, the instruction, sentences, chunks and the simulator's state. Nothing of a real robot.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from instructvla_ros import config, imaging, resources
from instructvla_ros.data.rebag import BagWriter
from instructvla_ros.datatypes import SceneState
from instructvla_ros.evaluation.rollout import Moment, run_episode
from instructvla_ros.geometry import Array, quat_from_pose
from instructvla_ros.policy import make_policy
from instructvla_ros.settings import Control, Embodiment, PolicySettings, Sim
from instructvla_ros.sim.camera import description_arguments
from instructvla_ros.sim.tasks import make_episode
from instructvla_ros.sim.world import World

SIM_STATE, REASONING = 'instructvla_ros/msg/SimState', 'instructvla_ros/msg/Reasoning'
TRANSPORT_NS = 20_000_000


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='folder of the bag; must not exist')
    parser.add_argument('--task', default='put')
    parser.add_argument('--seed', type=int, default=3)
    parser.add_argument('--width', type=int, default=224)
    parser.add_argument('--height', type=int, default=168)
    parser.add_argument('--rate', type=float, default=10.0, help='pictures and chunks per second [Hz]')
    parser.add_argument('--joint-rate', type=float, default=50.0, help='joint states per second [Hz]')
    parser.add_argument('--quality', type=int, default=60, help='of the JPEG pictures')
    parser.add_argument('--storage', default='mcap', choices=('mcap', 'sqlite3'))
    return parser.parse_args()


class Recorder:
    """Writes the moments of an episode."""

    def __init__(self, bag: BagWriter, robot: Embodiment, world: World, instruction: str, args: Any) -> None:
        self._bag, self._robot, self._world = bag, robot, world
        self._instruction, self._args = instruction, args
        self._next_joints, self._next_scene = 0.0, 0.0
        self._gripper = -1.0
        self._started = False

    def __call__(self, moment: Moment) -> None:
        """Write what is due."""
        stamp, bag = moment.state.stamp_ns, self._bag
        if not self._started:
            self._started = True
            bag.text('/instructvla/current_instruction', stamp, self._instruction)
        if moment.time >= self._next_joints - 1e-9:
            self._next_joints += 1.0 / self._args.joint_rate
            travel = moment.state.gripper * self._robot.gripper.max_width / 2.0
            fingers = self._robot.gripper.joints
            names = (*self._robot.arm_joints, *fingers)
            bag.joints(
                self._robot.topics.joint_states,
                stamp,
                names,
                [*moment.state.q, *[travel] * len(fingers)],
                [*moment.state.dq, *[0.0] * len(fingers)],
            )
        if moment.output.gripper != self._gripper:
            self._gripper = moment.output.gripper
            bag.gripper(
                self._robot.topics.gripper_command, stamp, self._gripper * self._robot.gripper.max_width
            )
        if moment.time >= self._next_scene - 1e-9:
            self._next_scene += 0.1
            self._write_scene(moment.scene, stamp)
        if moment.observation is not None:
            for name, image in moment.observation.views.items():
                view = self._robot.views[name]
                seen = moment.observation.view_stamps_ns[name]
                data = imaging.encode_jpeg(image, self._args.quality)
                bag.compressed(f'{view.topic}/compressed', seen, data, view.frame_id, stamp + TRANSPORT_NS)
                if seen == moment.observation.stamp_ns and moment.time < 2.0:
                    camera = self._world.camera(name)
                    size, late = (camera.width, camera.height), stamp + TRANSPORT_NS
                    bag.camera(view.info_topic, seen, camera.K, *size, view.frame_id, late)
        if moment.reasoning is not None:
            said = moment.reasoning
            bag.write(
                '/instructvla/reasoning',
                REASONING,
                stamp + TRANSPORT_NS,
                bag.make(
                    REASONING,
                    header=bag.header(said.stamp_ns),
                    id=said.id,
                    instruction=said.instruction,
                    text=said.text,
                    final=True,
                    source=said.source,
                ),
            )
        if moment.chunk is not None:
            bag.chunk(dataclasses.replace(moment.chunk, created_stamp_ns=stamp), recorded_ns=stamp + TRANSPORT_NS)

    def _pose(self, pose: Array) -> Any:
        x, y, z, w = (float(v) for v in quat_from_pose(pose))
        px, py, pz = (float(v) for v in pose[:3, 3])
        return self._bag.make(
            'geometry_msgs/msg/Pose',
            position=self._bag.make('geometry_msgs/msg/Point', x=px, y=py, z=pz),
            orientation=self._bag.make('geometry_msgs/msg/Quaternion', x=x, y=y, z=z, w=w),
        )

    def _write_scene(self, scene: SceneState, stamp: int) -> None:
        bag = self._bag
        objects = [
            bag.make(
                'instructvla_ros/msg/SimObject',
                name=o.name,
                category=o.category,
                color=o.color,
                size=o.size,
                pose=self._pose(o.pose),
                extent=bag.make('geometry_msgs/msg/Vector3', **dict(zip('xyz', map(float, o.extent), strict=True))),
                opening=float(o.opening),
            )
            for o in scene.objects.values()
        ]
        words = {k: getattr(scene, k) for k in ('task', 'instruction', 'seed', 'episode', 'target', 'destination')}
        message = bag.make(
            SIM_STATE,
            header=bag.header(stamp, self._robot.base_frame),
            progress=float(scene.progress),
            success=bool(scene.success),
            elapsed=float(scene.elapsed),
            time_limit=float(scene.time_limit),
            objects=objects,
            tcp_pose=self._pose(scene.tcp_pose),
            gripper=float(scene.gripper),
            held_object=scene.held,
            **words,
        )
        bag.write('/sim/state', SIM_STATE, stamp, message)


def main() -> int:
    """Run the episode and write the bag."""
    args = arguments()
    robot = config.load(Embodiment, resources.config_file('franka.yaml'))
    sim = config.load(Sim, resources.config_file('sim.yaml'))
    cameras = tuple(
        dataclasses.replace(c, width=args.width, height=args.height, rate=args.rate) for c in sim.cameras
    )
    sim = dataclasses.replace(sim, cameras=cameras)
    changes = {'policy': 'expert', 'chunk_rate': args.rate}
    settings = config.load(PolicySettings, resources.config_file('policy.yaml'), changes)
    episode = make_episode(args.task, args.seed, '', sim.randomization)
    with World(sim, robot) as world, BagWriter(args.out, args.storage) as bag:
        recorder = Recorder(bag, robot, world, episode.instruction, args)
        described = resources.robot_description(robot.name, 'builtin', description_arguments(sim, robot))
        bag.text(robot.topics.robot_description, 1_000_000_000, described)
        result = run_episode(
            episode,
            make_policy(settings, robot),
            sim=sim,
            embodiment=robot,
            control=config.load(Control, resources.config_file('controller.yaml')),
            policy_settings=settings,
            record=recorder,
            views=True,
            world=world,
        )
    size = sum(f.stat().st_size for f in args.out.rglob('*') if f.is_file())
    outcome = 'solved' if result.success else f'not solved ({result.failure}: {result.detail})'
    print(f'{args.out}: {result.instruction!r}, {outcome}, {result.time:.1f} s, {size / 1e6:.2f} MB')
    return 0 if result.success else 1


if __name__ == '__main__':
    raise SystemExit(main())
