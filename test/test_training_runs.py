"""What a training run refuses, survives and tells: bad data, a full disk, Ctrl-C, its report, what it forgot."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

torch = pytest.importorskip('torch')

from training_doubles import META, SMALL, dataset, options  # noqa: E402

from instructvla_ros.cli import main as cli  # noqa: E402
from instructvla_ros.commands.train import main as train_verb  # noqa: E402
from instructvla_ros.data.episodes import Dataset, Writer  # noqa: E402
from instructvla_ros.errors import CheckpointError, ConfigError, DataError  # noqa: E402
from instructvla_ros.model.checkpoint import load  # noqa: E402
from instructvla_ros.training import bench, forgetting, loop, record  # noqa: E402
from instructvla_ros.training.general import LONGEST, General  # noqa: E402
from instructvla_ros.training.report import write_report  # noqa: E402
from instructvla_ros.training.settings import Training  # noqa: E402
from instructvla_ros.training.setup import prepare  # noqa: E402
from instructvla_ros.training.state import load_state, read_log  # noqa: E402

Made = tuple[Path, str]


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp('runs')
    (folder / 'small.yaml').write_text(SMALL)
    return dataset(folder / 'data'), str(folder / 'small.yaml')


@pytest.fixture(scope='module')
def first(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to start from."""
    return loop.train(options(made, steps=1), tmp_path_factory.mktemp('first'), progress=False).checkpoint


@pytest.fixture(scope='module')
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty conversations: most with a picture, one damaged, one far too long."""
    folder = tmp_path_factory.mktemp('talk')
    PilImage.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(folder / 'grey.png')
    samples = []
    for k in range(40):
        answer = 'grey ' * 3000 if k == 0 else f'it is grey, number {k}'
        turns = [{'from': 'human', 'value': '<image>\nwhat is this?'}, {'from': 'gpt', 'value': answer}]
        samples.append({'id': str(k), 'image': 'missing.png' if k == 1 else 'grey.png', 'conversations': turns})
    (folder / 'talk.json').write_text(json.dumps(samples))
    return folder


@contextmanager
def full_disk(bytes_left: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def same(a: Path, b: Path) -> bool:
    one, two = load(a).model.state_dict(), load(b).model.state_dict()
    return all(torch.equal(one[n], two[n]) for n in one)


# Data that cannot be learned from.


def test_too_few_demonstrations_are_named(made: Made, tmp_path: Path) -> None:
    few = str(dataset(tmp_path / 'few', episodes=3))
    with pytest.raises(DataError, match=r'has 3 episodes to learn from, at least 5 .*fewest=3'):
        prepare(options(made, datasets=(few,)), tmp_path / 'a', progress=False)
    run = prepare(options(made, datasets=(few,), fewest=2), tmp_path / 'b', progress=False)
    aside = {int(k) for h in run.held_out for k in h.store.episode[h.rows]}
    assert len(aside) == 1, 'of a handful one episode is held out, whatever the share'
    assert not aside & set(run.train[0].store.episode[run.train[0].rows].tolist())


def test_an_episode_without_words_is_named(made: Made, tmp_path: Path) -> None:
    silent = str(dataset(tmp_path / 'silent', words=' '))
    with pytest.raises(DataError, match=r'12 of 12 episodes have no instruction \(e0, e1, e2, ...\)'):
        prepare(options(made, datasets=(silent,)), tmp_path / 'a', progress=False)


def test_each_dataset_may_be_scaled_by_itself(made: Made, first: Path, tmp_path: Path) -> None:
    def named(name: str, scale: float) -> str:
        source = Dataset.open(dataset(tmp_path / f'plain_{name}', scale=scale))
        with Writer(tmp_path / name, replace(META, name=name)) as writer:
            for episode in source:
                writer.add(episode)
        return str(tmp_path / name)

    def asked(**changes: object) -> Training:
        return options(made, recipe='onsite', init=str(first), statistics='own', **changes)

    both = (named('slow', 0.01), named('fast', 0.3))
    run = prepare(asked(datasets=both, held_out=0.25), tmp_path / 'a', progress=False)
    slow, fast = (e.statistics for e in run.train)
    assert slow is not None and fast is not None and (fast.q99 > 5 * slow.q99)[:6].all()
    assert run.held_out[0].statistics is slow and run.held_out[1].statistics is fast
    assert list(run.bundle.statistics) == ['slow', 'fast'], 'a policy names one of them'
    assert run.bundle.dataset('fast').q99 == pytest.approx(fast.q99)
    with pytest.raises(CheckpointError, match='holds 2 datasets, name one: fast, slow'):
        run.bundle.dataset()
    aside = prepare(asked(datasets=both[::-1], validation=(both[1],)), tmp_path / 'b', progress=False)
    assert aside.held_out[0].statistics is aside.train[0].statistics, 'the first folder is of the first dataset'
    with pytest.raises(ConfigError, match='several datasets are called'):
        prepare(asked(datasets=(made[0], made[0])), tmp_path / 'c', progress=False)
    with pytest.raises(ConfigError, match='2 held-out folders for 1 datasets'):
        prepare(asked(datasets=both[:1], validation=both), tmp_path / 'd', progress=False)


def test_an_angle_that_jumps_can_be_kept_from_the_expert(made: Made, first: Path, tmp_path: Path) -> None:
    data = tmp_path / 'down'
    with Writer(data, META) as writer:
        for episode in Dataset.open(made[0]):
            state = 0.3 * episode.proprio
            state[:, 3] = np.pi * np.where(np.arange(len(state)) % 2, 1.0, -1.0)  # the hand points straight down
            writer.add(replace(episode, proprio=state))
    chosen = options(made, datasets=(str(data),), recipe='onsite', init=str(first), statistics='data')
    runs = [prepare(replace(chosen, angles=a), tmp_path / a, progress=False) for a in ('all', 'steady')]
    plain, steady = (r.train[0].statistics for r in runs)
    assert plain is not None and steady is not None
    seen = runs[0].train[0].store.proprio[:4]
    assert np.abs(plain.normalize_proprio(seen))[:, 3] == pytest.approx(1.0)
    assert (steady.normalize_proprio(seen)[:, 3] == 0.0).all()
    others = [0, 1, 2, 4, 5, 7]
    assert steady.normalize_proprio(seen)[:, others] == pytest.approx(plain.normalize_proprio(seen)[:, others])


def test_the_tower_of_the_expert_can_stay_as_it_is(made: Made, first: Path, tmp_path: Path) -> None:
    chosen = options(made, recipe='onsite', init=str(first), steps=2)
    whole, kept = (prepare(replace(chosen, dino=d), tmp_path / f'{d}', progress=False).trainable for d in (True, False))
    assert {n for n in whole if n not in kept} == {n for n in whole if n.startswith('expert.dino.')} != set()
    after = load(loop.train(replace(chosen, dino=False), tmp_path / 'run', progress=False).checkpoint).model
    before = load(first).model.state_dict()
    for name, value in after.state_dict().items():
        if name.startswith('expert.dino.'):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(after.expert.head[0].weight, before['expert.head.0.weight'])


def test_numbers_that_are_not_finite_are_named(made: Made, tmp_path: Path) -> None:
    folder = dataset(tmp_path / 'nan')
    file = folder / 'episodes' / 'e4.npz'
    with np.load(file) as arrays:
        content = {k: np.array(arrays[k]) for k in arrays.files}
    content['proprio'][3, 1] = np.nan
    np.savez(file, **content)
    with pytest.raises(DataError, match='episode e4: proprio is not finite in frame 3 of 6'):
        prepare(options(made, datasets=(str(folder),)), tmp_path / 'a', progress=False)
    planned = tmp_path / 'planned'
    with Writer(planned, META) as writer:
        for k, episode in enumerate(Dataset.open(made[0])):
            chunks = np.zeros((len(episode), 4, 7))
            chunks[2, 1, 0] = np.inf if k == 7 else 0.0
            writer.add(replace(episode, extras={'chunks': chunks}))
    with pytest.raises(DataError, match='the action of episode e7 is not finite in frame 2'):
        prepare(options(made, datasets=(str(planned),)), tmp_path / 'b', progress=False)


def test_statistics_of_another_robot_are_refused_or_made_new(made: Made, first: Path, tmp_path: Path) -> None:
    def asked(data: Path, **changes: object) -> Training:
        return options(made, datasets=(str(data),), recipe='onsite', init=str(first), **changes)

    wild, calm = dataset(tmp_path / 'wild', scale=0.3), dataset(tmp_path / 'calm', scale=1e-5)
    with pytest.raises(DataError, match=r'of the steps lie outside .* another robot, rate or unit.*statistics=data'):
        prepare(asked(wild), tmp_path / 'a', progress=False)
    with pytest.raises(DataError, match=r'the translation spans .* another robot'):
        prepare(asked(calm), tmp_path / 'b', progress=False)
    assert prepare(asked(wild, clipped=1.0), tmp_path / 'c', progress=False).train[0].statistics is not None
    new = prepare(asked(wild, statistics='data'), tmp_path / 'd', progress=False)
    old = load(first).dataset()
    scale = new.train[0].statistics
    assert scale is not None and (scale.q99 > 5 * old.q99)[:6].all()
    assert new.bundle.dataset().q99 == pytest.approx(scale.q99), 'the checkpoint carries the new ones'
    proprio = load(first).statistics
    next(iter(proprio.values()))['proprio']['q01'][0] = 40.0
    next(iter(proprio.values()))['proprio']['q99'][0] = 41.0
    (tmp_path / 'elsewhere.json').write_text(json.dumps(proprio))
    with pytest.raises(DataError, match='the arm is outside of 40 .. 41 in x in 100% of the frames'):
        prepare(asked(made[0], statistics=str(tmp_path / 'elsewhere.json')), tmp_path / 'e', progress=False)
    with pytest.raises(CheckpointError, match='cannot read'):
        prepare(asked(made[0], statistics=str(tmp_path / 'none.json')), tmp_path / 'f', progress=False)


def test_held_out_folders_take_the_place_of_a_share(made: Made, tmp_path: Path) -> None:
    other = dataset(tmp_path / 'other', episodes=2)
    run = prepare(options(made, validation=(str(other),)), tmp_path / 'a', progress=False)
    assert len(run.train[0].rows) == 12 * 6, 'nothing is held out of the dataset itself'
    assert [len(h.rows) for h in run.held_out] == [2 * 6]


# Interruptions and full disks.


def test_a_full_disk_leaves_the_last_good_state_and_checkpoint(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / 'run'
    loop.train(options(made, steps=2, held_out=0.0), folder, progress=False)
    kept, state = tmp_path / 'kept', (folder / 'state.pt').read_bytes()
    shutil.copytree(folder / 'checkpoint', kept)
    longer = options(made, steps=4, held_out=0.0)
    with full_disk(60_000), pytest.raises(DataError, match='was not saved .* the last one is still good'):
        loop.train(longer, folder, progress=False)
    assert (folder / 'state.pt').read_bytes() == state and same(folder / 'checkpoint', kept)
    assert not list(folder.glob('*.part'))
    assert loop.train(longer, folder, progress=False).steps == 4, 'the same command goes on'


def test_a_full_disk_while_the_checkpoint_is_written(first: Path, tmp_path: Path) -> None:
    from instructvla_ros.model.checkpoint import save

    bundle = load(first)
    place = save(bundle, tmp_path / 'model')
    with full_disk(60_000), pytest.raises(CheckpointError, match='cannot write'):
        save(bundle, place, overwrite=True)
    assert same(place, first) and sorted(p.name for p in tmp_path.iterdir()) == ['model']


def test_a_step_that_is_not_finite_is_never_saved(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = loop.Objective.forward

    def poisoned(self: loop.Objective, *args: object) -> object:
        total, parts = forward(self, *args)
        calls.append(1)
        return (total * float('nan') if len(calls) == 3 else total), parts

    monkeypatch.setattr(loop.Objective, 'forward', poisoned)
    with pytest.raises(DataError, match='the loss is nan in step 3'):
        loop.train(options(made, steps=4, save_every=1, validate_every=100), tmp_path, progress=False)
    state = load_state(tmp_path)
    assert state is not None and state['step'] == 2
    assert all(bool(torch.isfinite(v).all()) for v in state['weights'].values())


def test_ctrl_c_ends_after_a_whole_step_and_the_run_goes_on_exactly(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = loop.train(options(made, steps=3), tmp_path / 'whole', progress=False)
    step = loop._step

    def pressed(*args: object) -> dict[str, float]:
        if args[-1] == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(loop, '_step', pressed)
    half = loop.train(options(made, steps=3), tmp_path / 'half', progress=False)
    assert half.interrupted and half.steps == 2
    monkeypatch.setattr(loop, '_step', step)
    rest = loop.train(options(made, steps=3), tmp_path / 'half', progress=False)
    assert not rest.interrupted and same(rest.checkpoint, whole.checkpoint)


def test_a_state_without_its_parts_and_a_log_cut_off(made: Made, tmp_path: Path) -> None:
    loop.train(options(made, steps=1), tmp_path, progress=False)
    log = tmp_path / 'log.jsonl'
    log.write_text(log.read_text() + '{"step": 1, "kin')
    assert [e['step'] for e in read_log(log)] == [1, 1]
    torch.save({'step': 1}, tmp_path / 'state.pt')
    with pytest.raises(CheckpointError, match='without weights, optimiser or step'):
        loop.train(options(made, steps=2), tmp_path, progress=False)


# General conversations, forgetting, the report.


def test_general_conversations(made: Made, first: Path, talk: Path) -> None:
    general = General.open(options(made, general=str(talk)), load(first))
    assert 1 <= len(general.held_out) <= 4 and len(general.held_out) + len(general._train) == 40
    assert not set(general.held_out) & set(general._train)
    batch = general.batch([general.source.read(0), general.source.read(2)])
    assert batch.ids.shape == (2, LONGEST) and batch.pixels is not None and batch.pixels.shape == (2, 3, 64, 64)
    assert general.read(1) is None and general.faults == 1 and 'missing.png' in general.fault
    rng = np.random.default_rng(0)
    assert all(len(general.draw(rng, 3).ids) == 3 for _ in range(20)), 'the damaged sample is passed over'
    with pytest.raises(DataError, match=r'0 .json or .jsonl files'):
        General.open(options(made, general=str(made[0] / 'episodes')), load(first))


def test_dialogues_beside_the_batches(made: Made, first: Path, talk: Path, tmp_path: Path) -> None:
    bare = tmp_path / 'bare'
    with Writer(bare, META) as writer:
        for k, episode in enumerate(Dataset.open(made[0])):
            writer.add(replace(episode, annotations=episode.annotations if k == 0 else {}))
    rng = np.random.default_rng(3)
    some = prepare(options(made, datasets=(str(bare),), general_batch=1), tmp_path / 'a', progress=False)
    assert all(some.talk(some.train[0], rng) is not None for _ in range(20)), 'one episode in twelve has texts'
    mute = dataset(tmp_path / 'mute', texts=False)
    none = prepare(options(made, datasets=(str(mute),), general_batch=2), tmp_path / 'b', progress=False)
    assert none.talk(none.train[0], rng) is None, 'recordings without texts are trained on all the same'
    asked = options(made, datasets=(str(mute),), general_batch=2, general=str(talk), general_share=0.0)
    told = prepare(asked, tmp_path / 'c', progress=False)
    assert told.talk(told.train[0], rng).pixels.shape[0] == 2, 'conversations stand in'


def test_forgetting_and_report(
    made: Made, first: Path, talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = options(
        made,
        recipe='stage2',
        init=str(first),
        steps=2,
        general_batch=2,
        general=str(talk / 'talk.json'),
        lr=0.02,
        ema=0.0,
    )
    result = loop.train(asked, tmp_path / 'run', progress=False)
    found = forgetting.read(tmp_path / 'run')
    assert found is not None and set(found.before) == set(found.after) == {'scenes', 'general'}
    run = prepare(asked, tmp_path / 'again', progress=False)
    probes = forgetting.probes(run)
    assert found.samples == forgetting.count(probes)
    for bundle, values in ((load(first), found.before), (load(result.checkpoint), found.after)):
        assert forgetting.losses(bundle, probes) == pytest.approx(values, rel=1e-4)
    assert found.before['general'] != found.after['general']
    assert found.change('general') == pytest.approx(found.after['general'] / found.before['general'] - 1)
    page = result.report.read_text()
    for words in ('Losses', 'On held-out episodes', 'Recorded and predicted', 'Forgetting', 'trained weights', 'fr3'):
        assert words in page, words
    assert page.count('class="episode"') == len(record.read_predictions(tmp_path / 'run')) > 0
    assert 'src="http' not in page and 'href="http' not in page and '<script src' not in page
    result.report.unlink()
    assert cli(['train', 'stage2', '--out', str(tmp_path / 'run'), '--report-only']) == 0
    assert str(result.report) in capsys.readouterr().out and result.report.is_file()


def test_predictions_are_those_of_the_saved_weights(made: Made, tmp_path: Path) -> None:
    result = loop.train(options(made, steps=2, ema=0.5), tmp_path, progress=False)
    kept = record.read_predictions(tmp_path)
    run = prepare(options(made, init=str(result.checkpoint)), tmp_path / 'again', progress=False)
    again = record.predict(loop.Objective(run.bundle.model, run.options), run)
    assert [p.episode for p in kept] == [p.episode for p in again] and kept
    for a, b in zip(kept, again, strict=True):
        np.testing.assert_allclose(a.predicted, b.predicted, atol=1e-5)
        episode = Dataset.open(made[0]).read(a.episode)
        np.testing.assert_allclose(a.recorded[:-1], episode.actions[:-1], atol=1e-6)
        assert np.isnan(a.recorded[-1]).all() and a.times[1] == pytest.approx(0.1)


def test_a_curve_of_one_point_is_a_dot_of_its_colour() -> None:
    from instructvla_ros.evaluation.svg import Curve
    from instructvla_ros.training.report import chart

    drawn = chart([Curve([1, 2], [3.0, 4.0], 'measured'), Curve([2], [1.0], 'commanded')], 'loss')
    assert re.findall(r'<circle class="([^"]*)"', drawn) == ['dot commanded']


def test_a_report_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='holds no training run'):
        write_report(tmp_path)
    (tmp_path / 'run.json').write_text('{')
    with pytest.raises(DataError, match='damaged'):
        write_report(tmp_path)


def test_the_verb_alone_ignores_what_ros_adds(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['stage1', '--data', str(made[0]), '--out', str(tmp_path / 'run'), '--json', '--set', f'model={made[1]}']
    words += [
        'steps=1',
        'batch=2',
        'accumulate=1',
        'precision="no"',
        'validation_frames=2',
        'checkpoint_activations=false',
    ]
    assert train_verb([*words, '--ros-args', '-r', '__node:=train']) == 0
    told = json.loads(capsys.readouterr().out)
    assert told['steps'] == 1 and Path(told['report']).is_file() and Path(told['checkpoint']).is_dir()


@pytest.mark.parametrize('recipe', ['stage1', 'stage2'])
def test_a_timed_step_is_the_same_step_both_ways(recipe: str, tmp_path: Path) -> None:
    (tmp_path / 'small.yaml').write_text(SMALL.replace('depth: 1', 'depth: 3'))
    found = bench.measure_step(str(tmp_path / 'small.yaml'), recipe, batch=2, repeats=1, device='cpu')
    assert found.difference < 1e-5, 'what the reference does besides changes nothing'
    vocabulary = 2 * 420 * 32  # embedding and output layer
    dead = found.trained_plain - found.trained_fast - vocabulary
    assert (dead > 0) == (recipe == 'stage1') and dead >= 0, 'the plain step carries gradients nobody needs'
