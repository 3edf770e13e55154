#!/usr/bin/env python3
"""Random (state, chunk, clock) cases through the safety ladder: nothing may leave a limit, every refusal has a name.

Nine cases of ten go through the pure rungs (chunk, workspace, tcp speed, time law), the tenth through the whole
controller with its player and inverse kinematics. A case is one period; the arm of a run lives for some hundred of
them, a tenth of the runs begin outside the position limits, and then may not get worse. Times are processor time.

    scripts/fuzz_safety.py --cases 1000000 --seed 0 [--json result.json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from instructvla_ros.config import load
from instructvla_ros.control.bounds import Bounds
from instructvla_ros.control.controller import Controller, Mode
from instructvla_ros.control.kinematics import Kinematics
from instructvla_ros.control.safety_chunk import check_chunk
from instructvla_ros.control.safety_motion import check_state, clip_to_workspace, limit_speed
from instructvla_ros.control.time_law import BOX_TOLERANCE, MotionState, TimeLaw
from instructvla_ros.datatypes import ActionChunk, RobotState, Verdict, VerdictAction
from instructvla_ros.geometry import Array
from instructvla_ros.resources import config_file
from instructvla_ros.settings import Control, Embodiment

TOLERANCE = 1e-6  # of each limit
RUN = 200  # cases of one arm
NOW = 1_700_000_000_000_000_000


@dataclass
class Tally:
    """What happened."""

    beyond: Counter = field(default_factory=Counter)
    unnamed: int = 0
    crashed: Counter = field(default_factory=Counter)
    rules: Counter = field(default_factory=Counter)
    first: str = ''
    modes: Counter = field(default_factory=Counter)
    times: dict[str, list[float]] = field(default_factory=lambda: {'chunk': [], 'motion': [], 'tick': []})

    def note(self, verdicts: tuple[Verdict, ...] | list[Verdict]) -> None:
        """Count the verdicts and find nameless ones."""
        for v in verdicts:
            self.rules[f'{v.rule} {v.action.name.lower()}'] += 1
            if not (v.rule and v.text):
                self.unnamed += 1

    def fault(self, what: str, where: str) -> None:
        """Count an output beyond a limit."""
        self.beyond[what] += 1
        self.first = self.first or f'{what}: {where}'


class Watch:
    """Finite differences of the commanded joints against the limits."""

    def __init__(self, bounds: Bounds, tally: Tally, position) -> None:
        self.bounds, self.tally, self.position = bounds, tally, position
        self.restart(None)

    def restart(self, q: Array | None) -> None:
        """The command begins anew at q, at rest."""
        self.history: list[Array] = [] if q is None else [q, q, q]
        b = self.bounds
        self.lower = b.lower if q is None else np.minimum(b.lower, q)
        self.upper = b.upper if q is None else np.maximum(b.upper, q)
        self.outside = BOX_TOLERANCE if q is None else max(BOX_TOLERANCE, self._excess(q))

    def _excess(self, q: Array) -> float:
        p = self.position(q)
        return float(np.max(np.maximum(self.bounds.box_lower - p, p - self.bounds.box_upper)))

    def see(self, q: Array, where: str) -> None:
        """Check the next command."""
        b, period = self.bounds, self.bounds.period
        if not np.isfinite(q).all():
            self.tally.fault('finite', where)
            return
        if not self.history:
            self.restart(q)
            self.history = []
        self.history = [*self.history[-3:], q]
        value = np.array(self.history)
        # Rounding of numbers near 3 rad, divided by the period once per order.
        for name, limit in (('velocity', b.velocity), ('acceleration', b.acceleration), ('jerk', b.jerk)):
            value = np.diff(value, axis=0) / period
            if len(value) and (np.abs(value[-1]) > limit * (1 + TOLERANCE) + 1e-4).any():
                self.tally.fault(name, f'{where}: {value[-1].tolist()}')
        if (q < self.lower - TOLERANCE).any() or (q > self.upper + TOLERANCE).any():
            self.tally.fault('position', f'{where}: {q.tolist()}')
        if self._excess(q) > self.outside + 1e-4:
            self.tally.fault('workspace', f'{where}: {self.position(q).tolist()}')


class Cases:
    """Random inputs."""

    def __init__(self, rng: np.random.Generator, frame: str) -> None:
        self.rng, self.frame, self.count = rng, frame, 0

    def number(self) -> float:
        """A number nobody asked for."""
        return float(self.rng.choice([np.nan, np.inf, -np.inf, 1e300, -1e300, 1e9, -0.0, 5e-324]))

    def chunk(self, now: int, reference: Array) -> ActionChunk:
        """A chunk, a quarter of them broken in some way."""
        rng = self.rng
        self.count += 1
        steps = rng.uniform(-1, 1, (int(rng.integers(1, 17)), 7)) * rng.choice([0.01, 0.05, 0.2, 3.0])
        steps[:, 6] = rng.uniform(0, 1, len(steps)) if rng.random() < 0.9 else rng.uniform(-2, 2, len(steps))
        created = now - int(rng.uniform(0, 0.2) * 1e9)
        observed = created - int(rng.uniform(0, 0.3) * 1e9)
        period, frame = float(rng.choice([0.1, 0.2, 0.05])), self.frame
        if rng.random() < 0.25:
            what = rng.integers(6)
            if what == 0:
                steps[rng.integers(len(steps)), rng.integers(7)] = self.number()
            elif what == 1:
                reference = reference.copy()
                reference[rng.integers(4), rng.integers(4)] = self.number()
            elif what == 2:
                observed += int(rng.uniform(-5, 5) * 1e9)
            elif what == 3:
                created += int(rng.uniform(-5, 5) * 1e9)
            elif what == 4:
                frame = str(rng.choice(['', 'world', 'fr3_link8']))
            else:
                period = float(rng.choice([1e-9, 0.001, 1e4, 1e300]))
        return ActionChunk(
            id=f'c{self.count}',
            observation_stamp_ns=observed,
            created_stamp_ns=created,
            step_period=period,
            steps=steps,
            frame_id=frame,
            reference_pose=reference,
            delta_frame='tool' if rng.random() < 0.2 else 'base',
            rotation='rotvec' if rng.random() < 0.3 else 'rpy',
        )

    def state(self, now: int, q: Array, n: int) -> RobotState | None:
        """A joint state, broken in some way."""
        rng, dq = self.rng, np.zeros(n)
        what = rng.integers(5)
        if what == 0:
            return None
        if what == 1:
            q = q.copy()
            q[rng.integers(n)] = self.number()
        elif what == 2:
            q = q[: rng.integers(n)]
        elif what == 3:
            return RobotState(now + int(rng.uniform(-20, 20) * 1e9), q, dq, 1.0)
        else:
            dq[rng.integers(n)] = self.number()
        return RobotState(now, q, dq, 1.0)


def explain(tally: Tally, met: bool, verdicts) -> None:
    """What was not done as asked needs a verdict."""
    if not met and not any(v.action is not VerdictAction.PASSED for v in verdicts):
        tally.unnamed += 1
        tally.first = tally.first or 'an input was changed without a verdict'


def pure_run(
    rng: np.random.Generator, count: int, b: Bounds, law: TimeLaw, kinematics: Kinematics, tally: Tally
) -> int:
    """Some hundred cases through the pure rungs; returns how many."""
    cases = Cases(rng, b.frame_id)
    n = len(b.joints)
    q = rng.uniform(b.lower, b.upper)
    if rng.random() < 0.1:
        q = q + rng.uniform(-0.3, 0.3, n)
    state, watch = MotionState.at_rest(q), Watch(b, tally, kinematics.position)
    watch.restart(q)
    reference, target, aim, speed = kinematics.forward(q), np.eye(4), q, np.zeros(n)
    for done in range(count):
        if done % 3 == 0:
            chunk = cases.chunk(NOW, reference)
            begin = time.thread_time()
            checked, verdicts = check_chunk(chunk, NOW, b)
            tally.times['chunk'].append(time.thread_time() - begin)
            tally.note(verdicts)
            explain(tally, checked is chunk, verdicts)
            if checked is not None:
                far = np.linalg.norm(checked.steps[:, :3], axis=1)
                vectors = checked.steps[:, 3:6]
                if checked.rotation == 'rpy':
                    vectors = Rotation.from_euler('xyz', vectors).as_rotvec()
                turn = np.linalg.norm(vectors, axis=1)
                good = (
                    np.isfinite(checked.steps).all() and ((0 <= checked.steps[:, 6]) & (checked.steps[:, 6] <= 1)).all()
                )
                if not good or far.max() > b.safety.max_step_translation + 1e-9:
                    tally.fault('step', repr(checked.steps.tolist()))
                if turn.max() > b.safety.max_step_rotation + 1e-9:
                    tally.fault('step rotation', repr(checked.steps.tolist()))
            broken = cases.state(NOW, state.q, n)
            verdict = check_state(broken, NOW, b)
            tally.note([verdict] if verdict else [])
        if done % 10 == 0:
            kind = rng.integers(4)
            speed = rng.uniform(-1.5, 1.5, n) * b.velocity if kind else np.zeros(n)
            aim = state.q + rng.uniform(-0.1, 0.1, n) if kind < 3 else rng.uniform(b.lower - 1, b.upper + 1)
            if rng.random() < 0.05:
                aim = aim.copy()
                aim[rng.integers(n)] = cases.number()
        wanted = np.eye(4)
        wanted[:3, 3] = rng.uniform(-1.5, 1.5, 3)
        begin = time.thread_time()
        clipped, first = clip_to_workspace(wanted, b)
        moved, second = limit_speed(target, clipped, b)
        aim = aim + speed * b.period
        if rng.random() < 0.02:
            following, third = law.brake(state), ()
        else:
            following, third = law.advance(state, aim, speed, float(rng.choice([1.0, 1.0, 0.3])))
        tally.times['motion'].append(time.thread_time() - begin)
        inside = np.all(clipped[:3, 3] >= b.box_lower) and np.all(clipped[:3, 3] <= b.box_upper)
        reach = b.safety.max_cartesian_speed * b.period
        if not inside or np.linalg.norm(moved[:3, 3] - target[:3, 3]) > reach * (1 + 1e-9):
            tally.fault('target', repr(wanted[:3, 3].tolist()))
        tally.note((*first, *second, *third))
        explain(tally, np.abs(wanted - clipped).max() <= 1e-6, first)
        explain(tally, moved is clipped, second)
        target, state = moved, following
        watch.see(state.q, f'pure case {done}')
    return count


def controller_run(rng: np.random.Generator, count: int, arm: Embodiment, kinematics: Kinematics, tally: Tally) -> int:
    """Some hundred periods of a whole controller in a bad world; returns how many."""
    control = Control(
        strategy=str(rng.choice(['replace', 'ensemble', 'blend'])), ramp_time=float(rng.choice([0.0, 0.2]))
    )
    controller = Controller(arm, control, kinematics)
    b = controller.bounds
    cases, n = Cases(rng, b.frame_id), len(b.joints)
    home = np.array(arm.home)
    q = np.clip(home + rng.uniform(-0.5, 0.5, n), b.lower, b.upper)
    now, latched, watch = NOW, False, Watch(b, tally, kinematics.position)
    controller.tick(now, RobotState(now, q, np.zeros(n), 1.0))
    controller.enable(True)
    anew = True
    for done in range(count):
        dice = rng.random()
        period = 10_000_000 + int(rng.normal(0, 5e5))
        if dice < 0.01:
            period = int(rng.choice([-(10**9), 0, 50_000_000, 700_000_000]))
        now += period
        if rng.random() < 0.15:
            chunk = cases.chunk(now, kinematics.forward(q))
            verdicts = controller.on_chunk(chunk, now)
            explain(tally, np.isfinite(chunk.steps).all(), verdicts)
        if dice > 0.998:
            controller.stop('fuzz')
            latched = True
        elif dice > 0.98:
            latched = latched and controller.reset() != ''
        elif dice > 0.94:
            controller.enable(bool(rng.random() < 0.9))
        elif dice > 0.935:
            controller.dry_run = bool(rng.random() < 0.3)
        state = RobotState(now, q, np.zeros(n), 1.0) if rng.random() < 0.95 else cases.state(now, q, n)
        begin = time.thread_time()
        out = controller.tick(now, state)
        tally.times['tick'].append(time.thread_time() - begin)
        tally.note(out.verdicts)
        tally.modes[out.mode.name] += 1
        if (out.mode is Mode.STOPPED) != latched:
            tally.fault('stop latch', f'controller case {done}')
        if period == 0:
            continue
        named = {v.rule for v in out.verdicts}
        if out.command is None:
            anew = True
            continue
        if anew or 'clock' in named:
            watch.restart(out.command.q)  # taken over at rest
        elif 'loop_period' in named:
            watch.restart(None)  # somewhere on the stop that ends every command
        anew = False
        watch.see(out.command.q, f'controller case {done}')
        q = q + np.clip(out.command.q - q, -0.05, 0.05) * 0.5
    return count


def summary(tally: Tally, cases: int, seconds: float, seed: int) -> dict:
    """Plain numbers."""
    out = {
        'cases': cases,
        'seed': seed,
        'seconds': round(seconds, 1),
        'outputs_beyond_a_limit': sum(tally.beyond.values()),
        'beyond': dict(tally.beyond),
        'unnamed_refusals': tally.unnamed,
        'exceptions': dict(tally.crashed),
        'first_fault': tally.first,
        'controller_modes': dict(tally.modes),
        'verdicts': dict(tally.rules.most_common()),
    }
    for name, values in tally.times.items():
        if values:
            p50, p99 = np.percentile(np.array(values), [50, 99]) * 1e6
            out[f'{name}_cpu_us'] = {'p50': round(float(p50), 1), 'p99': round(float(p99), 1), 'calls': len(values)}
    return out


def main(argv: list[str] | None = None) -> int:
    """Run; 0 when nothing was beyond a limit, unnamed or raised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cases', type=int, default=1_000_000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--embodiment', default='franka.yaml', help='file in config/ or path')
    parser.add_argument(
        '--controller-share', type=float, default=0.1, help='share of cases through the whole controller'
    )
    parser.add_argument('--json', type=Path, help='write the result here')
    args = parser.parse_args(argv)
    arm = load(Embodiment, config_file(args.embodiment))
    kinematics = Kinematics(arm)
    hard = Bounds.from_settings(arm, Control())
    # A second arm whose jerk limit binds at the controller rate; the real one is far above it.
    soft = replace(
        hard, jerk=np.full(kinematics.n, 40.0), acceleration=np.full(kinematics.n, 2.0), velocity=0.3 * hard.velocity
    )
    laws = [(b, TimeLaw(b, kinematics.position)) for b in (hard, soft)]
    tally, done, begin = Tally(), 0, time.perf_counter()
    try:
        with tqdm(total=args.cases, unit='case', smoothing=0.05) as bar:
            run = 0
            while done < args.cases:
                rng = np.random.default_rng((args.seed, run))
                run += 1
                count = min(RUN, args.cases - done)
                try:
                    if rng.random() < args.controller_share:
                        controller_run(rng, count, arm, kinematics, tally)
                    else:
                        b, law = laws[int(rng.integers(2))]
                        pure_run(rng, count, b, law, kinematics, tally)
                except Exception as err:
                    tally.crashed[f'{type(err).__name__}: {err}'] += 1
                    tally.first = tally.first or f'run {run - 1}: {err!r}'
                done += count
                bar.update(count)
                bar.set_postfix(
                    beyond=sum(tally.beyond.values()), unnamed=tally.unnamed, raised=sum(tally.crashed.values())
                )
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
    result = summary(tally, done, time.perf_counter() - begin, args.seed)
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    return 1 if result['outputs_beyond_a_limit'] or result['unnamed_refusals'] or result['exceptions'] else 0


if __name__ == '__main__':
    sys.exit(main())
