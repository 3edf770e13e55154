"""A made-up recorded run with known numbers, for the tests of the metrics and the report. No robot made it."""

from __future__ import annotations

import numpy as np

from instructvla_ros.evaluation.runlog import (
    MODES,
    ChunkRows,
    CommandRows,
    ControllerRows,
    FrameRows,
    JointRows,
    RunLog,
    Table,
    TaskRows,
)

START_NS = 1_700_000_000_000_000_000
MS = 1_000_000


def synthetic_run(
    duration: float = 12.0,
    *,
    joints: int = 7,
    transport: float = 0.006,
    policy: float = 0.004,
    controller: float = 0.005,
) -> RunLog:
    """A smooth reach with one grasp; every latency stage, the jitter and the tracking lag are known constants [s]."""
    rng = np.random.default_rng(0)
    names = tuple(f'fr3_joint{k + 1}' for k in range(joints))
    control, states, commands = Table(ControllerRows, joints), Table(JointRows, joints), Table(CommandRows, joints)
    chunks, frames, task = Table(ChunkRows, joints), Table(FrameRows, joints), Table(TaskRows, joints)

    def q(t: float) -> np.ndarray:
        return 0.4 * np.sin(0.5 * t + np.arange(joints)) + 0.05 * np.sin(2.1 * t)

    def xyz(t: float) -> np.ndarray:
        s = np.clip(t / duration, 0, 1)
        return np.array([0.45 + 0.12 * np.sin(3 * s), -0.2 + 0.42 * s, 0.22 + 0.14 * np.cos(4 * np.pi * s)])

    steps: list[np.ndarray] = []
    first_play: list[int] = []
    for k, t in enumerate(np.arange(0.5, duration - 0.5, 0.2)):
        observed = START_NS + round(t * 1e9)
        created = observed + round((transport + policy) * 1e9)
        rows = np.zeros((8, 7))
        path = np.array([xyz(t + 0.1 * j) for j in range(9)]) + rng.normal(0, 0.002, (9, 3))
        rows[:, :3] = np.diff(path, axis=0)
        pose = np.eye(4)
        pose[:3, 3] = xyz(t)
        chunks.append(
            observation_ns=observed,
            created_ns=created,
            received_ns=created + MS,
            model_latency=policy,
            step_period=0.1,
            tool_frame=0,
            rotvec=0,
            reference_pose=pose,
            first=8 * k,
            horizon=8,
        )
        steps.append(rows)
        first_play.append(created + round(controller * 1e9))
    verdicts = []
    starts = np.array(first_play)
    for k in range(round(duration * 100)):
        t = k * 0.01
        stamp = START_NS + round(t * 1e9)
        playing = int(np.searchsorted(starts, stamp, side='right')) - 1
        tracking = 0 <= playing and t < duration - 0.4
        if tracking and k % 97 == 0:
            verdicts.append(
                {
                    'stamp_ns': stamp,
                    'rule': 'joint_velocity',
                    'action': 'SCALED',
                    'subject': 'fr3_joint4',
                    'value': 0.75 + 0.1 * (k % 3),
                    'limit': 0.75,
                    'unit': 'rad/s',
                    'text': 'fr3_joint4 asked for more than 0.75 rad/s; slowed down.',
                    'chunk_id': f'chunk-{playing}',
                }
            )
        control.append(
            stamp_ns=stamp,
            received_ns=stamp + MS,
            mode=MODES.index('TRACKING' if tracking else 'HOLDING'),
            commanded_q=q(t),
            measured_q=q(t) - 0.002,
            commanded_dq=np.gradient(np.array([q(t - 0.01), q(t), q(t + 0.01)]), 0.01, axis=0)[1],
            commanded_xyz=xyz(t),
            measured_xyz=xyz(t - 0.03),
            gripper=0.0 if 4 < t < 9 else 1.0,
            chunk=playing if tracking else -1,
            step=0 if tracking else -1,
            loop_period=0.01 + (0.001 if k % 2 else -0.001),
        )
        states.append(stamp_ns=stamp, received_ns=stamp + MS, q=q(t) - 0.002, gripper=0.5 if 4.3 < t < 9.2 else 1.0)
        commands.append(stamp_ns=stamp, received_ns=stamp + MS)
        if k % 5 == 0:
            task.append(
                stamp_ns=stamp, progress=min(1.0, t / (duration - 1)), success=t > duration - 1, tcp_xyz=xyz(t - 0.03)
            )
        if k % 7 == 0:
            for view in (0, 1):
                frames.append(stamp_ns=stamp, received_ns=stamp + 4 * MS, view=view)
    things = [
        {
            'name': 'red_cube',
            'category': 'cube',
            'color': 'red',
            'size': 'medium',
            'xyz': [0.5, -0.1, 0.02],
            'extent': [0.045, 0.045, 0.045],
        },
        {
            'name': 'bowl',
            'category': 'bowl',
            'color': 'white',
            'size': '',
            'xyz': [0.5, 0.2, 0.03],
            'extent': [0.16, 0.16, 0.06],
        },
        {
            'name': 'green_ball',
            'category': 'ball',
            'color': 'green',
            'size': '',
            'xyz': [0.38, 0.05, 0.02],
            'extent': [0.045, 0.045, 0.045],
        },
    ]
    moved = [dict(thing, xyz=[0.5, 0.2, 0.04]) if thing['name'] == 'red_cube' else thing for thing in things]
    sentences = [
        'I will move above the red cube.',
        'I will lower the gripper and close it.',
        'I will carry it to the bowl.',
        'I will let it go.',
    ]
    return RunLog(
        meta={
            'start_ns': START_NS,
            'task': 'put',
            'instruction': 'put the red cube in the bowl',
            'seed': 0,
            'policy': 'expert',
            'privileged': True,
            'robot': 'fr3',
            'success': True,
            'success_after': duration - 1,
            'outcome': 'SUCCEEDED',
            'reason': 'The policy said it is done.',
            'duration': duration - 0.3,
            'time_limit': 60.0,
            'control_rate': 100.0,
            'domain_id': 7,
            'created': '2026-01-01T12:00:00',
            'command': "instructvla demo --instruction 'put the red cube in the bowl'",
            'machine': {'processor': 'a made-up one', 'cores': 2},
            'versions': {'instructvla_ros': '0', 'python': '3'},
        },
        joint_names=names,
        views=('third_person', 'wrist'),
        controller=control.build(),
        joints=states.build(),
        commands=commands.build(),
        chunks=chunks.build(),
        frames=frames.build(),
        task=task.build(),
        steps=np.concatenate(steps),
        chunk_ids=tuple(f'chunk-{k}' for k in range(len(steps))),
        chunk_reasoning=tuple(f'say-{k * 4 // len(steps)}' for k in range(len(steps))),
        reasoning=tuple(
            {
                'id': f'say-{k}',
                'stamp_ns': START_NS + round((0.5 + k * (duration - 1) / 4) * 1e9),
                'text': text,
                'kind': 'PLAN',
                'tokens': 0,
                'latency': 0.001,
                'source': 'expert',
                'instruction': 'put the red cube in the bowl',
            }
            for k, text in enumerate(sentences)
        ),
        verdicts=tuple(verdicts),
        objects={'start': things, 'end': moved, 'target': 'red_cube', 'destination': 'bowl'},
    )
