"""Fixed shapes give the numbers of the fast path; what is recorded neither waits for values nor remembers them."""

from __future__ import annotations

import gc
import logging
import threading

import model_doubles as doubles
import numpy as np
import pytest

doubles.needs_model()

import torch  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

from instructvla_ros.config import load as load_config  # noqa: E402
from instructvla_ros.datatypes import Observation  # noqa: E402
from instructvla_ros.errors import ObservationError  # noqa: E402
from instructvla_ros.model.config import Adapters  # noqa: E402
from instructvla_ros.model.fast import FastPath  # noqa: E402
from instructvla_ros.model.graphs import Graphs, Lanes, Pool, Slot, upload  # noqa: E402
from instructvla_ros.model.policy import InstructVLAPolicy  # noqa: E402
from instructvla_ros.model.realtime import Guide  # noqa: E402
from instructvla_ros.model.static import BUCKET, StaticPath, StaticSession, make_engine, padded  # noqa: E402
from instructvla_ros.model.warmup import warm_up  # noqa: E402
from instructvla_ros.resources import config_file  # noqa: E402
from instructvla_ros.settings import Embodiment, PolicySettings  # noqa: E402

CLOSE = {'rtol': 1e-4, 'atol': 2e-5}
CPU = torch.device('cpu')
VARIANTS = {
    'stage 2': {},
    'stage 1': {'adapters': Adapters(count=1, rank=4, alpha=8.0), 'views': 1, 'proprio': False},
    'no adapters': {'adapters': Adapters(count=0)},
}


class Tape:
    """Stands in for CUDA graphs on a CPU: records the tensor operations of one run and repeats exactly those.

    Like a graph it refuses work that looks at a value, and repeats whatever depended on a number of the host.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.replays = 0

    def record(self, work, arguments, results):
        self.names.append(getattr(work, 'func', work).__name__)
        for _ in range(2):
            work(*arguments)
        tape = make_fx(work)(*arguments)

        def replay() -> None:
            self.replays += 1
            for result, value in zip(results, tape(*arguments), strict=True):
                result.copy_(value)

        return replay


class Tapes(list):
    """Makes recorders and keeps them."""

    def __call__(self) -> Tape:
        self.append(Tape())
        return self[-1]


@pytest.fixture(scope='module', params=VARIANTS)
def bundle(request, tmp_path_factory):
    return doubles.small_bundle(tmp_path_factory.mktemp('small'), **VARIANTS[request.param])


@pytest.fixture(scope='module')
def gated(tmp_path_factory):
    return doubles.small_bundle(tmp_path_factory.mktemp('gated'))


def question(bundle, instruction, batch=1):
    return torch.from_numpy(bundle.prompts.reason(instruction))[None].expand(batch, -1)


def action(bundle, instruction, response=None, batch=1):
    return torch.from_numpy(bundle.prompts.action(instruction, response))[None].expand(batch, -1)


def step(engine, bundle, given, instruction, response='I will move to the red cube.'):
    """Sentence, logits, latent after it and chunk."""
    pixels, views, proprio, noise = given
    batch, logits = len(pixels), []
    session = engine.begin(pixels)
    said = engine.sentence(session, question(bundle, instruction, batch), end_id=bundle.prompts.end_id, logits=logits)
    latent = engine.latent(session, action(bundle, instruction, response, batch))
    return said, torch.stack(logits), latent, engine.chunk(latent, views, proprio, noise, steps=3)


@pytest.mark.parametrize('batch', [1, 2])
def test_fixed_shapes_without_recording(bundle, batch):
    engine, plain = StaticPath(bundle.model, Graphs(CPU)), FastPath(bundle.model)
    assert not engine.graphs.recording
    for seed, instruction in enumerate(('lift up', 'put the red cube in the bowl', 'go')):
        given = doubles.inputs(bundle.config, batch, seed)
        (said, *found), (expected, *exact) = (step(e, bundle, given, instruction) for e in (engine, plain))
        assert said == expected
        for ours, theirs in zip(found, exact, strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)


def test_recorded_pieces_hold_for_other_inputs_and_never_look_at_values(bundle):
    tapes = Tapes()
    engine, plain = StaticPath(bundle.model, Graphs(CPU, recorder=tapes)), FastPath(bundle.model)
    # The instructions have different lengths in one padded length: what is recorded for one must serve the others.
    instructions = ('lift up', 'lift it up', 'put it down')
    assert len({padded(question(bundle, i).shape[1], BUCKET) for i in instructions}) == 1
    assert len({question(bundle, i).shape[1] for i in instructions}) > 1
    for seed, instruction in enumerate(instructions):
        given = doubles.inputs(bundle.config, 1, seed)
        (said, *found), (expected, *exact) = (
            step(e, bundle, given, instruction, 'I will.' + ' and' * seed) for e in (engine, plain)
        )
        assert said == expected
        for ours, theirs in zip(found, exact, strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)
    frames, chunks = tapes
    assert sorted(frames.names) == ['_read_on', '_read_whole', '_see', '_speak'] and chunks.names == ['_act']
    assert chunks.replays == 2 and frames.replays >= 6
    assert engine.graphs.recording


@pytest.mark.parametrize('mask', ['bias', 'block'])
@pytest.mark.parametrize('guided', [False, True])
def test_chunks_recorded(gated, mask, guided):
    tapes, config = Tapes(), gated.config
    engine, plain = StaticPath(gated.model, Graphs(CPU, recorder=tapes)), FastPath(gated.model)
    for seed in range(3):
        _, views, proprio, noise = doubles.inputs(config, 2, seed)
        latent = torch.randn(2, config.queries, config.language.hidden_size)
        guide = None
        if guided:  # how much is committed changes from chunk to chunk
            previous = np.random.default_rng(seed).normal(size=(config.horizon, 7)) * 0.4
            guide = Guide(previous, seed, 3 - seed, 10.0)
        ours, theirs = (
            e.chunk(latent, views, proprio, noise, steps=2, mask=mask, guide=guide) for e in (engine, plain)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert [t.names for t in tapes] == [['_act_guided' if guided else '_act']] and tapes[0].replays == 2
    nothing_left = Guide(np.zeros((config.horizon, 7)), 0, config.horizon, 10.0)
    ours = engine.chunk(latent, views, proprio, noise, steps=2, mask=mask, guide=nothing_left)
    torch.testing.assert_close(ours, plain.chunk(latent, views, proprio, noise, steps=2, mask=mask), **CLOSE)
    trace = []
    engine.chunk(latent, views, proprio, noise, steps=2, mask=mask, trace=trace)
    assert len(trace) == 2


def test_two_threads_do_not_mix(gated):
    """System 2 says sentences of one frame while System 1 reads another and acts, from the same weights and tapes."""
    engine, plain = StaticPath(gated.model, Graphs(CPU, recorder=Tapes())), FastPath(gated.model)
    given = [doubles.inputs(gated.config, 1, seed) for seed in range(2)]
    words = ('put the red cube in the bowl', 'go to the red cube')
    expected = [step(plain, gated, given[k], words[k]) for k in range(2)]
    # One after the other first: making a tape is not for two threads, playing it is.
    busy = engine._experts.take(), engine.begin(given[0][0])
    step(engine, gated, given[1], words[1])
    engine._experts.give(busy[0])
    del busy
    for k in range(2):
        step(engine, gated, given[k], words[k])
    assert engine._sessions[1].made == engine._experts.made == 2
    barrier, right = threading.Barrier(2), []

    def work(k: int) -> None:
        barrier.wait()
        for _ in range(3):
            said, *found = step(engine, gated, given[k], words[k])
            exact = zip(found, expected[k][1:], strict=True)
            right.append(said == expected[k][0] and all(torch.allclose(a, b, **CLOSE) for a, b in exact))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 6
    assert engine._sessions[1].made == engine._experts.made == 2


def test_sessions_side_by_side_have_buffers_of_their_own(gated):
    engine, plain = StaticPath(gated.model, Graphs(CPU)), FastPath(gated.model)
    given = [doubles.inputs(gated.config, 1, seed)[0] for seed in range(6)]
    sessions = [engine.begin(pixels) for pixels in given]  # more than there are slots
    assert [getattr(s, 'slot', None) is not None for s in sessions] == [True] * 4 + [False] * 2
    prompt, act = question(gated, 'lift up'), action(gated, 'lift up', 'I will.')
    said = [engine.sentence(s, prompt, end_id=-1) for s in sessions]
    for pixels, session, words in zip(given, sessions, said, strict=True):
        other = plain.begin(pixels)
        assert words == plain.sentence(other, prompt, end_id=-1)
        torch.testing.assert_close(engine.latent(session, act), plain.latent(other, act), **CLOSE)
    del session, sessions
    gc.collect()
    assert isinstance(engine.begin(given[0]), StaticSession) and engine._sessions[1].made == 4


def test_a_session_reads_one_prompt_after_the_other_and_outgrows_its_buffers(gated):
    engine, plain = StaticPath(gated.model, Graphs(CPU, recorder=Tapes())), FastPath(gated.model)
    pixels = doubles.inputs(gated.config)[0]
    session, other = engine.begin(pixels), plain.begin(pixels)
    long = 'red cube ' * 300
    assert action(gated, long).shape[1] > engine.capacity
    for instruction in ('lift up', 'put the red cube in the bowl, then go home', 'stop', long, 'stop'):
        ids = action(gated, instruction)
        torch.testing.assert_close(engine.latent(session, ids), plain.latent(other, ids), **CLOSE)
    assert not session.fits(1)
    assert engine.sentence(session, question(gated, 'go'), end_id=-1) == plain.sentence(
        other, question(gated, 'go'), end_id=-1
    )


def test_what_is_not_a_number_stays_in_its_frame(gated):
    engine = StaticPath(gated.model, Graphs(CPU))
    pixels = doubles.inputs(gated.config)[0]
    ids, words = question(gated, 'put the red cube in the bowl'), question(gated, 'go')
    exact = engine.sentence(engine.begin(pixels), words, end_id=-1)
    engine.sentence(engine.begin(torch.full_like(pixels, float('nan'))), ids, end_id=-1)
    assert engine._sessions[1].made == 1
    assert engine.sentence(engine.begin(pixels), words, end_id=-1) == exact


def test_bad_input_is_refused_and_changes_nothing(gated):
    engine = StaticPath(gated.model, Graphs(CPU))
    pixels, views, proprio, noise = doubles.inputs(gated.config)
    latent = torch.randn(1, gated.config.queries, gated.config.language.hidden_size)
    good = engine.chunk(latent, views, proprio, noise)
    with pytest.raises(ObservationError, match='2 views'):
        engine.chunk(latent, views[:, :1], proprio, noise)
    with pytest.raises(ObservationError, match='arm state'):
        engine.chunk(latent, views, None, noise)
    with pytest.raises(ObservationError, match='VLM pixels'):
        engine.begin(pixels[:, :, :-1])
    assert torch.equal(engine.chunk(latent, views, proprio, noise), good)
    assert engine._experts.made == 1 and engine._sessions[1].made == 1  # what failed has given its buffers back


class Refuses:
    """A recorder as on a driver that cannot capture."""

    def record(self, work, arguments, results):
        raise RuntimeError('CUDA error: operation not permitted when stream is capturing\nmore')


def test_without_graphs_it_goes_on_after_one_warning(gated, caplog):
    engine, plain = StaticPath(gated.model, Graphs(CPU, recorder=Refuses)), FastPath(gated.model)
    given = doubles.inputs(gated.config)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            (said, *found), (expected, *exact) = (step(e, gated, given, 'lift up') for e in (engine, plain))
            assert said == expected
            for ours, theirs in zip(found, exact, strict=True):
                torch.testing.assert_close(ours, theirs, **CLOSE)
    (record,) = caplog.records
    assert 'vision tower could not be recorded' in record.message and 'not permitted' in record.message
    assert 'more' not in record.message.split('(')[1].split(')')[0] and not engine.graphs.recording


def test_a_compiler_that_fails_is_not_asked_again(gated, caplog, monkeypatch):
    asked = []

    def broken(work):
        def run(*arguments, **options):
            asked.append(work.__name__)
            raise RuntimeError('no compiler')

        return run

    monkeypatch.setattr(torch, 'compile', broken)
    engine, plain = StaticPath(gated.model, Graphs(CPU, compile=True)), FastPath(gated.model)
    given = doubles.inputs(gated.config)
    with caplog.at_level(logging.WARNING):
        found, exact = (step(e, gated, given, 'lift up') for e in (engine, plain))
    assert found[0] == exact[0] and torch.allclose(found[3], exact[3], **CLOSE)
    assert asked == ['_see'] and len(caplog.records) == 1 and 'uncompiled' in caplog.text


def test_slots_are_lent_to_one_and_the_last_one_first():
    made = iter('abc')
    pool: Pool[str] = Pool(lambda: next(made), 2)
    first, second = pool.take(), pool.take()
    assert (first, second, pool.take(), pool.made) == ('a', 'b', None, 2)
    pool.give(first)
    pool.give(second)
    assert pool.take() == 'b'


def test_a_slot_keeps_one_piece_per_shape_and_option():
    slot = Slot(Graphs(CPU, recorder=Tapes()))
    state = (torch.zeros(3),)

    def count(x, total, *, factor):
        return (x * factor + total.fill_(len(x))[0],)

    for length in (2, 3, 2):
        for factor in (1, 10):
            x = torch.arange(float(length))
            (out,) = slot.run('count', count, (x,), state, (('factor', factor),))
            assert out.tolist() == (x * factor + length).tolist() and state[0].tolist() == [length] * 3
    assert slot.pieces == 4
    kept, _ = (slot.run('count', count, (torch.full((2,), v),), state, (('factor', 1),))[0] for v in (1.0, 5.0))
    assert kept.tolist() == [3.0, 3.0], 'a result belongs to the caller'


def test_on_a_cpu_there_are_no_streams_and_no_pinned_memory():
    with Lanes(CPU, urgent='chunk')('chunk') as stream:
        assert stream is None
    tensor = torch.ones(2)
    assert upload(tensor, CPU) is tensor


@pytest.mark.parametrize(
    ('capture', 'compile', 'static'),
    [('auto', False, False), ('off', True, False), ('on', False, True), ('auto', True, True)],
)
def test_the_engine_follows_the_settings(gated, capture, compile, static):
    assert isinstance(make_engine(gated.model, capture, compile), StaticPath) is static


ARM = load_config(Embodiment, config_file('franka.yaml'))


def settings(**changes):
    return PolicySettings(policy='instructvla', checkpoint='x', horizon=6, euler_steps=2, **changes)


def observation(seed):
    return Observation(
        stamp_ns=1000 + seed,
        views={n: doubles.image(48, 64, seed + i) for i, n in enumerate(ARM.views)},
        proprio=np.array([0.4, 0.1, 0.2, 0.0, 0.1, 0.2, 0.0, 1.0]),
        q=np.zeros(7),
        dq=np.zeros(7),
        frame_id=ARM.base_frame,
        instruction='put the red cube in the bowl',
    )


@pytest.mark.parametrize('realtime', ['off', 'guided'])
def test_the_policy_says_and_does_the_same_in_fixed_shapes(gated, realtime):
    ways = [
        InstructVLAPolicy(gated, settings(capture=capture, realtime=realtime, realtime_measured=False), ARM)
        for capture in ('off', 'on')
    ]
    assert isinstance(ways[1]._engine, StaticPath)
    for seed in range(3):
        seen = observation(seed)
        said = [p.think(seen) for p in ways]
        assert said[0].text == said[1].text and said[0].final
        spoken = [p.infer(seen, s).steps for p, s in zip(ways, said, strict=True)]
        silent = [p.infer(observation(seed + 10), None).steps for p in ways]
        np.testing.assert_allclose(*spoken, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(*silent, rtol=1e-3, atol=1e-5)
        assert len({p.answer(seen, 'What is it?').text for p in ways}) == 1


def test_the_policy_thinks_and_acts_at_the_same_time_in_fixed_shapes(gated):
    policy = InstructVLAPolicy(gated, settings(capture='on'), ARM)
    frames = [observation(seed) for seed in range(4)]
    expected = [policy.think(f).text for f in frames]
    found, done = [], threading.Event()

    def think():
        found.extend(policy.think(f).text for _ in range(2) for f in frames)
        done.set()

    thread = threading.Thread(target=think)
    thread.start()
    chunks = 0
    while not done.wait(0.001):
        assert np.isfinite(policy.infer(frames[chunks % 4], None).steps).all()
        chunks += 1
    thread.join()
    assert found == expected * 2 and chunks > 0


def test_warming_up_meets_every_shape_and_says_how_far_it_is(gated):
    engine, lines = make_engine(gated.model, 'on'), []
    warm_up(engine, gated, steps=2, guided=True, beta=10.0, say=lines.append)
    assert lines[-1].startswith('warming up: done')
    slots = [engine.begin(doubles.inputs(gated.config)[0]) for _ in range(3)]
    assert engine._sessions[1].made == 3
    before = [s.slot.pieces for s in slots]
    expert = engine._experts.take()
    assert expert.pieces == 2  # free, and guided
    engine._experts.give(expert)
    for session in slots:
        for words in ('go', 'put the red cube in the bowl'):
            engine.sentence(session, question(gated, words), end_id=-1, limit=3)
            engine.latent(session, action(gated, words, 'I will move to the red cube.'))
            session.ids = session.ids[:, :0]
    assert [s.slot.pieces for s in slots] == before
    plain = warm_up(FastPath(gated.model), gated, steps=2, guided=False, beta=10.0, say=lines.append)
    assert plain > 0
