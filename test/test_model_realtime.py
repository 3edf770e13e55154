"""Real-time chunking: masks, alignment, guided sampling on flows that are known exactly, the policy, and the seams."""

from __future__ import annotations

import math
from dataclasses import replace

import model_doubles as doubles
import numpy as np
import pytest

doubles.needs_model()

import torch  # noqa: E402

from instructvla_ros.config import load as load_config  # noqa: E402
from instructvla_ros.control.bounds import Bounds  # noqa: E402
from instructvla_ros.control.chunk_player import ChunkPlayer  # noqa: E402
from instructvla_ros.datatypes import ActionChunk, Observation  # noqa: E402
from instructvla_ros.geometry import pose  # noqa: E402
from instructvla_ros.model.fast import FastPath  # noqa: E402
from instructvla_ros.model.flow import SIGMA_MIN, integrate  # noqa: E402
from instructvla_ros.model.policy import InstructVLAPolicy  # noqa: E402
from instructvla_ros.model.realtime import (  # noqa: E402
    Continuation,
    Guide,
    blend,
    guidance,
    guidance_weight,
    per_number,
    ramp,
    remainder,
    sample_guided,
    soft_mask,
)
from instructvla_ros.resources import config_file  # noqa: E402
from instructvla_ros.settings import Control, Embodiment, PolicySettings  # noqa: E402

ARM = load_config(Embodiment, config_file('franka.yaml'))
H, SPREAD = 8, 0.1
FORWARD, ASIDE = 0.4, 0.6  # normalised speeds of the two ways around an obstacle


def two_ways(horizon: int = H) -> torch.Tensor:
    """(2, H, 7) means of the modes: forward and to the left, forward and to the right; gripper open."""
    out = torch.zeros(2, horizon, 7)
    out[:, :, 0] = FORWARD
    out[0, :, 1], out[1, :, 1] = ASIDE, -ASIDE
    out[:, :, 6] = 1.0
    return out


def mixture(means: torch.Tensor, spread: float = SPREAD):
    """Exact velocity of the flow whose actions are an even mixture of N(mean, spread^2): E[a - (1 - sigma) n | x_t]."""

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t[:, None, None, None]
        c = 1.0 - (1.0 - SIGMA_MIN) * t
        variance = t**2 * spread**2 + c**2
        off = x[:, None] - t * means[None].to(x.dtype)
        share = torch.softmax(-0.5 * (off**2 / variance).sum((2, 3)), dim=1)[:, :, None, None]
        actions = means[None] + t * spread**2 / variance * off
        noise = c / variance * off
        return (share * (actions - (1.0 - SIGMA_MIN) * noise)).sum(1)

    return velocity


def noise(batch: int, seed: int = 0, horizon: int = H) -> torch.Tensor:
    return torch.randn(batch, horizon, 7, generator=torch.Generator().manual_seed(seed))


# --- mask, weight, alignment ------------------------------------------------------------------------------------


def test_soft_mask_is_that_of_the_paper():
    mask = soft_mask(8, 2, 3)
    assert np.all(mask[:2] == 1.0) and np.all(mask[5:] == 0.0)
    for i in (2, 3, 4):
        c = (8 - 3 - i) / (8 - 3 - 2 + 1)
        assert mask[i] == pytest.approx(c * (math.exp(c) - 1) / (math.e - 1))
    assert np.all(np.diff(mask) <= 0.0)
    assert not soft_mask(8, 2, 8).any() and not soft_mask(8, 2, 9).any()
    assert soft_mask(8, 7, 5).tolist() == [1.0] * 3 + [0.0] * 5  # committed is at most the overlap
    weights = per_number(mask)
    assert weights[:, 6].tolist() == [1.0] * 2 + [0.0] * 6 and np.array_equal(weights[:, 0], mask)


def test_guidance_weight():
    assert guidance_weight(0.0, 5.0) == guidance_weight(1.0, 5.0) == 5.0
    for t in (0.1, 0.5, 0.8):
        r2 = (1 - t) ** 2 / (t**2 + (1 - t) ** 2)
        assert guidance_weight(t, 100.0) == pytest.approx((1 - t) / (t * r2))
    assert guidance_weight(0.99, 5.0) == 5.0


def test_remainder_keeps_where_the_chunk_leads():
    chunk = np.random.default_rng(0).normal(size=(6, 7))
    chunk[:, 6] = [1, 1, 0, 0, 1, 1]
    assert np.array_equal(remainder(chunk, 0.0), chunk)
    assert np.array_equal(remainder(chunk, 2.0), chunk[2:])
    assert len(remainder(chunk, 6.0)) == len(remainder(chunk, 5.5)) == len(remainder(chunk, 9.3)) == 0
    travelled = np.concatenate([np.zeros((1, 6)), np.cumsum(chunk[:, :6], axis=0)])

    def at(time):
        return np.array([np.interp(time, np.arange(7), travelled[:, k]) for k in range(6)])

    for shift in (0.25, 1.6, 3.999):
        left = remainder(chunk, shift)
        assert len(left) == math.floor(6 - shift)
        assert set(left[:, 6]) <= {0.0, 1.0}, 'a gripper is not half open because time is fractional'
        for k in range(len(left) + 1):
            np.testing.assert_allclose(left[:k, :6].sum(0), at(shift + k) - at(shift), atol=1e-12)


# --- sampler ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('batch', [1, 3])
def test_nothing_known_is_plain_sampling_to_the_bit(batch):
    velocity, start = mixture(two_ways()), noise(batch)
    plain = integrate(velocity, start, 10)
    assert torch.equal(sample_guided(velocity, start, torch.ones(1, H, 7), 3, H), plain)
    assert torch.equal(sample_guided(velocity, start, torch.ones(1, H, 7), 3, 2, beta=0.0), plain)


def test_the_estimate_is_where_the_integration_ends():
    start, action = noise(2).double(), noise(2, 1).double()
    t = 0.3
    x = (1.0 - (1.0 - SIGMA_MIN) * t) * start + t * action
    v = action - (1.0 - SIGMA_MIN) * start
    torch.testing.assert_close(x + (1.0 - t) * v, integrate(lambda *_: v.float(), start, 4).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize('t', [0.0, 0.4, 0.9])
def test_the_pull_is_downhill_by_finite_differences(t):
    velocity, x, target = mixture(two_ways(), 0.3), noise(2).double(), noise(2, 1).double()
    weights = torch.from_numpy(per_number(soft_mask(H, 2, 3)))

    def loss(x: torch.Tensor) -> torch.Tensor:
        # The estimate in double: the sampler itself works in float32.
        end = x + (1.0 - t) * velocity(x, torch.full((2,), t, dtype=torch.float64))
        return 0.5 * (weights * (target - end) ** 2).sum()

    _, pull = guidance(velocity, x, t, target, weights)
    rng = np.random.default_rng(0)
    for _ in range(12):
        at = tuple(rng.integers(n) for n in x.shape)
        step = torch.zeros_like(x)
        step[at] = 1e-5
        numeric = -(loss(x + step) - loss(x - step)) / 2e-5
        assert float(pull[at]) == pytest.approx(float(numeric), abs=2e-4)


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('way', [0, 1])
def test_guided_samples_go_on_in_the_way_that_was_begun(batch, way):
    means, delay, executed = two_ways(), 3, 2
    velocity = mixture(means)
    previous = means[way] + SPREAD * noise(1, 5)[0]
    share = {'plain': [], 'guided': []}
    prefix = []
    for seed in range(40):
        start = noise(batch, seed)
        out, plain = sample_guided(velocity, start, previous[None], delay, executed), integrate(velocity, start, 10)
        assert out.shape == start.shape and torch.isfinite(out).all() and not out.requires_grad
        for name, rows in (('plain', plain), ('guided', out)):
            on_the_way = (rows[:, :, 1].mean(1) - means[way, 0, 1]).abs() < SPREAD
            share[name] += on_the_way.tolist()
            if name == 'guided' and on_the_way.any():
                prefix += (rows - previous)[on_the_way][:, :delay].flatten().tolist()
                # From the first step to the last; a mean of the two ways would be at 0.
                assert (rows[on_the_way][:, :, 1] - means[way, :, 1]).abs().max() < 0.6 * ASIDE
    assert 0.3 < np.mean(share['plain']) < 0.7, 'the model by itself takes either'
    assert np.mean(share['guided']) > 0.9  # a noise far on the other side is not always turned
    # A sample of the mode by itself is sqrt(2) * SPREAD away.
    assert np.sqrt(np.mean(np.square(prefix))) < 0.8 * SPREAD and np.abs(prefix).max() < 3 * SPREAD


def test_a_prefix_is_reproduced_when_the_flow_allows_it():
    means = torch.zeros(1, H, 7)
    velocity, previous = mixture(means, 1.0), 0.8 * noise(1, 5)
    start = noise(3)
    out = sample_guided(velocity, start, previous, 3, 2, beta=100.0, steps=100)
    assert (out - previous)[:, :3].abs().max() < 0.01
    torch.testing.assert_close(out[:, -2:, :], integrate(velocity, start, 100)[:, -2:, :])
    coarse = sample_guided(velocity, start, previous, 3, 2)
    assert (coarse - previous)[:, :3].abs().max() < 0.1 < (integrate(velocity, start, 10) - previous)[:, :3].abs().max()


def test_rows_of_a_batch_do_not_pull_each_other():
    velocity, start = mixture(two_ways()), noise(3)
    previous = two_ways()[:1]
    together = sample_guided(velocity, start, previous, 2, 2)
    alone = torch.cat([sample_guided(velocity, start[i : i + 1], previous, 2, 2) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_blend_keeps_the_gripper_where_committed_and_does_not_fade_it():
    chunk, before = np.zeros((6, 7)), np.ones((6, 7))
    out = blend(chunk, Guide(before, 2, 2, 5.0))
    assert out[:, 6].tolist() == [1, 1, 0, 0, 0, 0]
    np.testing.assert_allclose(out[:, 0], ramp(6, 2, 2))
    np.testing.assert_allclose(out[:, 0], [1, 1, 2 / 3, 1 / 3, 0, 0])


# --- the model --------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return doubles.small_bundle(tmp_path_factory.mktemp('small'))


@pytest.mark.parametrize('mask', ['bias', 'block'])
@pytest.mark.parametrize('batch', [1, 2])
def test_fast_path_guided_equals_the_plain_velocity_guided(bundle, mask, batch):
    model, config = bundle.model, bundle.config
    _, views, proprio, start = doubles.inputs(config, batch)
    latent = torch.randn(batch, config.queries, config.language.hidden_size, generator=torch.Generator().manual_seed(1))
    previous = 0.5 * noise(1, 3, config.horizon)[0]
    guide = Guide(previous.double().numpy(), 2, 1, 10.0)
    engine = FastPath(model)
    out = engine.chunk(latent, views, proprio, start, mask=mask, guide=guide)
    again = engine.chunk(latent, views, proprio, start, mask=mask, guide=guide)
    plain = engine.chunk(latent, views, proprio, start, mask=mask)
    assert torch.equal(out, again) and torch.isfinite(out).all() and not out.requires_grad
    assert torch.equal(plain, engine.chunk(latent, views, proprio, start, mask=mask)), 'guidance left nothing behind'
    with torch.no_grad():
        prefix = model.expert.prefix(latent, views, proprio)
    expected = sample_guided(lambda x, t: model.expert.velocity(prefix, x, t, mask), start, previous[None], 2, 1)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-4)
    error = [(o - previous)[:, :2].square().mean().item() for o in (plain, out)]
    assert error[1] < 0.3 * error[0], error
    assert all(p.grad is None for p in model.parameters())


def settings(**changes):
    return PolicySettings(policy='instructvla', checkpoint='x', horizon=6, **changes)


def observation(stamp: float, instruction: str = 'put the red cube in the bowl', seed: int = 0) -> Observation:
    return Observation(
        stamp_ns=round(stamp * 1e9),
        views={n: doubles.image(48, 64, seed + i) for i, n in enumerate(ARM.views)},
        proprio=np.array([0.4, 0.1, 0.2, 0.0, 0.1, 0.2, 0.0, 1.0]),
        q=np.zeros(7),
        dq=np.zeros(7),
        frame_id=ARM.base_frame,
        instruction=instruction,
    )


@pytest.mark.parametrize('mode', ['blend', 'guided'])
@pytest.mark.parametrize('mask', ['bias', 'block'])
def test_policy_continues_its_own_chunk(bundle, mode, mask):
    bundle.model.config = replace(bundle.config, expert=replace(bundle.config.expert, mask=mask))
    try:
        # 0.2 s are committed on top of what this machine takes.
        policy = InstructVLAPolicy(bundle, settings(realtime=mode, realtime_latency=0.2), ARM)
        off = InstructVLAPolicy(bundle, settings(), ARM)
        first, second = policy.infer(observation(1.0), None), policy.infer(observation(1.2, seed=5), None)
        plain = off.infer(observation(1.0), None), off.infer(observation(1.2, seed=5), None)
    finally:
        bundle.model.config = bundle.config
    np.testing.assert_array_equal(first.steps, plain[0].steps)
    np.testing.assert_allclose(second.steps[:2], first.steps[2:4], atol=1e-12)
    assert np.abs(second.steps[:2] - plain[1].steps[:2]).max() > 1e-3
    assert set(second.steps[:, 6]) <= {0.0, 1.0} and np.isfinite(second.steps).all()
    policy.reset()
    np.testing.assert_array_equal(policy.infer(observation(1.0), None).steps, first.steps)


def test_policy_begins_afresh_when_the_past_is_of_no_use(bundle):
    def second(*, stamp=1.2, instruction='put the red cube in the bowl', reset=False, mode='guided'):
        policy = InstructVLAPolicy(bundle, settings(realtime=mode, realtime_latency=0.2), ARM)
        policy.infer(observation(1.0), None)
        if reset:
            policy.reset()
        return policy.infer(observation(stamp, instruction), None).steps

    for case in ({'instruction': 'open the drawer'}, {'stamp': 1.6}, {'stamp': 0.9}, {'reset': True}):
        np.testing.assert_array_equal(second(**case), second(**case, mode='off'), err_msg=str(case))
    assert np.abs(second() - second(mode='off')).max() > 0.0


def test_latency_is_a_running_percentile():
    memory = Continuation('guided', 5.0, 0.1, 8, extra_latency=0.05)
    assert memory.latency == pytest.approx(0.05)
    for k in range(200):
        memory.measured(0.1 if k % 20 else 1.0)
    assert memory.latency == pytest.approx(0.15)
    memory.keep(0, 'x', np.arange(56.0).reshape(8, 7))
    guide = memory.guide(round(0.2e9), 'x')
    assert (guide.delay_steps, guide.execution_steps) == (2, 2)
    assert memory.guide(round(0.65e9), 'x').delay_steps == 1, 'never more than is left'
    assert memory.guide(round(0.75e9), 'x') is None, 'not one whole step is left'


# --- seams ------------------------------------------------------------------------------------------------------

SPEED = 0.015  # m per step for a normalised 1: 0.15 m/s
TICK = 0.01
LATENCY = (0.0, 0.1, 0.2, 0.3)


def closed_loop(mode: str, latency: float, duration: float = 3.0, chunk_period: float = 0.2) -> dict[str, float]:
    """A policy whose noise alternately leads left and right, played by the chunk player with an ideal arm.

    ``step``: speed of the new chunk minus that of the one being played, at the take-over [m/s], rms over the seams.
    ``acceleration``: of the target, largest [m/s^2]. ``between``: share of steps that are on neither way.
    """
    control = Control(tracking_lag=0.0)
    player = ChunkPlayer(control, Bounds.from_settings(ARM, control))
    where = pose([0.35, 0.0, 0.4])
    player.reset(where, 0)
    memory = Continuation(mode, 10.0, 0.1, H)
    memory.measured(latency)
    velocity = mixture(two_ways())
    starts = {0: [], 1: []}
    for seed in range(200):  # noise that leads left, noise that leads right
        sample = noise(1, seed)
        starts[int(integrate(velocity, sample, 10)[0, :, 1].mean() < 0)].append(sample)
    waiting, due_next, count = None, 0.0, 0
    jumps, between, targets = [], [], []
    playing = None
    for k in range(round(duration / TICK)):
        now = round(k * TICK * 1e9)
        if waiting is None and now * 1e-9 >= due_next - 1e-9:
            guide = memory.guide(now, 'go')
            start = starts[count % 2][count // 2]
            if guide is not None and mode == 'guided':
                previous = torch.from_numpy(guide.previous)[None]
                raw = sample_guided(velocity, start, previous, guide.delay_steps, guide.execution_steps, guide.beta)
            else:
                raw = integrate(velocity, start, 10)
            steps = memory.finish(raw[0].double().numpy(), guide)
            memory.keep(now, 'go', steps)
            between += list(np.abs(np.abs(steps[:, 1]) - ASIDE) > 4 * SPREAD)
            scaled = steps.copy()
            scaled[:, :6] *= SPEED
            scaled[:, 3:6] = 0.0  # a turn without a cause would only hide the numbers
            chunk = ActionChunk(f'c{count}', now, now, 0.1, scaled, ARM.base_frame, where.copy())
            waiting, due_next, count = (now + round(latency * 1e9), chunk), now * 1e-9 + chunk_period, count + 1
        if waiting is not None and now >= waiting[0]:
            chunk, waiting = waiting[1], None
            if playing is not None:
                speeds = []
                for c in (playing, chunk):
                    at = min(int((now - c.observation_stamp_ns) * 1e-8 + 1e-6), c.horizon - 1)
                    speeds.append(c.steps[at, :3] / c.step_period)
                jumps.append(np.linalg.norm(speeds[1] - speeds[0]))
            assert not any(v.action.name == 'REFUSED' for v in player.admit(chunk, now))
            playing = chunk
        sample = player.sample(now, where)
        if sample is not None:
            where = sample.pose.copy()
        player.record(now, where)
        targets.append(where[:3, 3].copy())
    motion = np.diff(np.array(targets), n=2, axis=0) / TICK**2
    strength = np.linalg.norm(motion, axis=1)[round(0.6 / TICK) :]  # the start from rest is no seam
    return {
        'step': float(np.sqrt(np.mean(np.square(jumps[2:])))),
        'acceleration': float(np.percentile(strength, 99)),
        'between': float(np.mean(between)),
        'travel': float(targets[-1][0] - targets[0][0]),
    }


@pytest.mark.parametrize('latency', LATENCY)
def test_seams_are_smoother_than_without(latency, record_property):
    rows = {mode: closed_loop(mode, latency) for mode in ('off', 'blend', 'guided')}
    for mode, row in rows.items():
        for name, value in row.items():
            record_property(f'{latency:.1f} s {mode} {name}', round(value, 4))
        print(f'{latency:.1f} s {mode:7s}', ' '.join(f'{n} {v:.4f}' for n, v in row.items()))
    off, mixed, guided = rows['off'], rows['blend'], rows['guided']
    assert guided['step'] < 0.5 * off['step'] and mixed['step'] < 0.6 * off['step']
    assert guided['acceleration'] < 0.7 * off['acceleration'] and mixed['acceleration'] < 0.5 * off['acceleration']
    assert guided['between'] < 0.05 and guided['between'] < 0.3 * mixed['between'], 'it does not average two ways'
    assert guided['travel'] > 0.8 * FORWARD * SPEED * 10 * (3.0 - latency), 'it gets somewhere'
