"""Tabletop-Instruct: what is asked, how it is run, what is made of it."""

import json
import os
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mujoco')
pytest.importorskip('pinocchio')

from instructvla_ros import cli, config, resources
from instructvla_ros import settings as s
from instructvla_ros.errors import ConfigError, InstructVLAError, SetupError, TaskError
from instructvla_ros.evaluation import sentences_file, suite_report, suite_scores, suites
from instructvla_ros.evaluation.rollout import Disturbance, run_episode
from instructvla_ros.evaluation.sentences_file import read_sentences, read_words
from instructvla_ros.evaluation.suite_cell import Cell, Setup, case_id
from instructvla_ros.evaluation.suite_runner import RESULTS, earlier, run_cases
from instructvla_ros.evaluation.suites import TEST_SEED, Suite, Variant, cases, multiplied, read_suite
from instructvla_ros.policy import HoldPolicy, act_alone
from instructvla_ros.policy_expert import ExpertPolicy
from instructvla_ros.sim.annotations import instructions
from instructvla_ros.sim.relations import scene_objects
from instructvla_ros.sim.tasks import make_episode

BASE = s.Randomization()
POLICY = config.load(s.PolicySettings, resources.config_file('policy.yaml'))
SETUP = Setup(
    embodiment=config.load(s.Embodiment, resources.config_file('franka.yaml')),
    sim=config.load(s.Sim, resources.config_file('sim.yaml')),
    control=config.load(s.Control, resources.config_file('controller.yaml')),
    policy=POLICY,
)
SMALL = Suite('small', family='situated', tasks={'pick': 1, 'put': 1})


def short(found, seconds=0.4):
    return [replace(c, episode=replace(c.episode, time_limit=seconds)) for c in found]


def setup_in(folder, policy='hold', **changes):
    return replace(SETUP, folder=str(folder), policy=config.replace(POLICY, policy=policy), **changes)


class Double:
    """Holds still, and remembers what it was shown. Not privileged."""

    name, privileged, checkpoint_revision = 'hold', False, 'r1'

    def __init__(self):
        self.inner, self.seen, self.thoughts = HoldPolicy(POLICY.step_period, POLICY.horizon), [], 0

    def reset(self):
        self.seen.clear()

    def think(self, observation):
        self.thoughts += 1

    def infer(self, observation, reasoning):
        self.seen.append(observation)
        return self.inner.infer(observation, reasoning)


# -- what is asked


@pytest.mark.parametrize('name', suites.NAMES)
def test_a_suite_is_always_the_same_list_of_unseen_scenes(name):
    suite = read_suite(name)
    found = cases(suite, BASE, 4)
    assert found == cases(suite, BASE, 4)
    assert len(found) == 4 * len(suite.tasks) * len(suite.variants)
    assert len({c.key for c in found}) == len(found)
    assert min(c.episode.seed for c in found) >= TEST_SEED
    for variant in suite.variants:
        own = [c for c in found if c.variant is variant]
        assert [c.episode.seed for c in own] == [c.episode.seed for c in found[: len(own)]], 'same scenes throughout'


def test_the_default_table_has_a_hundred_episodes_per_suite():
    for name in suites.DEFAULT:
        suite = read_suite(name)
        assert sum(suite.tasks.values()) == 100
        assert suite.split == 'held_out'


@pytest.mark.parametrize('name', ['aggregation', 'situated'])
def test_what_is_asked_is_not_what_training_says(name):
    suite = read_suite(name)
    lines = {line for group in suites.held_out(suite).values() for line in group}
    assert len(lines) > 80
    kinds = Counter()
    for case in cases(suite, BASE, 12):
        rng = np.random.default_rng(0)
        said = {
            p.text for f in ('plain', 'aggregation', 'situated') for p in instructions(case.episode, f, rng, 'train')
        }
        assert case.episode.instruction not in said
        assert case.episode.target in scene_objects(case.episode.scene)
        kinds[case.kind] += 1
    assert len(kinds) >= 5


def test_variants_change_what_they_say():
    found = {v.name: v for v in read_suite('robustness').variants}
    assert found['latency 300 ms'].disturbance(5) == Disturbance(latency=0.3, seed=5)
    assert found['30 % of the frames lost'].disturbance(0).frame_drop == 0.3
    assert found['strong light'].randomization(BASE) == replace(BASE, light=1.0)
    assert {v.latency for v in found.values()} == {0.0, 0.1, 0.2, 0.3}
    episodes = {c.variant.name: c.episode for c in cases(read_suite('robustness'), BASE, 1)}
    plain, moved = episodes['as trained'].scene, episodes['camera moved up to 3 cm'].scene
    assert plain.objects == moved.objects
    assert np.max(np.abs(moved.look.camera_shift)) <= 0.03 and moved.look.camera_shift != plain.look.camera_shift
    assert len(episodes['4 distractors'].scene.objects) == len(plain.objects) + 2
    with pytest.raises(ConfigError, match='camera'):
        Variant('far', camera=9.0).randomization(BASE)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'tasks': {'pik': 3}}, 'pick'),
        ({'tasks': {'pick': 0}}, 'at least one'),
        ({'tasks': {}}, 'must not be empty'),
        ({'seed': 5}, '1000000'),
        ({'family': 'situatd'}, 'situated'),
        ({'variants': [{'name': 'a'}, {'name': 'a'}]}, 'a name of its own'),
        ({'variants': [{'name': 'a', 'latency': -1.0}]}, 'latency'),
    ],
)
def test_suites_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        config.from_dict(Suite, {'name': 'mine', 'tasks': {'pick': 1}, **changes})


def test_an_unknown_suite_is_named(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'situated'"):
        read_suite('situatde')
    (tmp_path / 'mine.yaml').write_text('name: mine\ntasks: {stack: 2}\n')
    assert [c.episode.task for c in cases(read_suite(str(tmp_path / 'mine.yaml')), BASE)] == ['stack', 'stack']


def test_every_case_with_every_choice():
    found = multiplied(cases(SMALL, BASE), [True, False], ['replace', 'blend'], 0.2)
    assert len(found) == 8 == len({c.key for c in found})
    assert {c.variant.latency for c in found} == {0.2}
    assert Counter((c.sentence, c.strategy) for c in found)[False, 'blend'] == 2


# -- sentences of one's own

OWN = """
- sentence: Give me what a clown wears on his nose!
  seed: 12
- sentence: tidy up
  scene: [red cube, small blue ball, {object: white bowl, at: [0.55, 0.1]}]
  target: the small ball
  destination: white_bowl
- {sentence: make a tower, task: stack, scene: [large red cube, green cube], target: green cube, destination: red cube}
- {sentence: hide it, scene: [black cylinder, drawer], target: black can, destination: drawer, seed: 3}
"""


def test_the_documented_sentences_can_be_read(tmp_path):
    page = Path(__file__).resolve().parents[1] / 'docs' / 'tabletop_instruct.md'
    if not page.is_file():
        pytest.skip('the documentation is not beside this test')
    block = re.search(r'```yaml\n(.*?)```', page.read_text(encoding='utf-8'), re.S)
    (tmp_path / 'page.yaml').write_text(block[1])
    (tmp_path / 'module.yaml').write_text(sentences_file.__doc__.partition('Example:')[2])
    found = read_sentences(tmp_path / 'page.yaml', BASE)
    assert [c.episode.target for c in found] == ['red_ball', 'red_cube']
    assert found == read_sentences(tmp_path / 'module.yaml', BASE)


def test_sentences_of_ones_own(tmp_path):
    file = tmp_path / 'own.yaml'
    file.write_text(OWN)
    first, second, third, fourth = (c.episode for c in read_sentences(file, BASE))
    assert (first.task, first.instruction) == ('pick', 'Give me what a clown wears on his nose!')
    assert first.target == make_episode('pick', 12).target
    assert (second.task, second.target, second.destination, second.relation) == ('put', 'blue_ball', 'white_bowl', 'in')
    bowl = scene_objects(second.scene)['white_bowl'].pose[:2, 3]
    assert np.allclose(bowl, (0.55, 0.1))
    assert (third.task, third.relation, third.target) == ('stack', 'on', 'green_cube')
    assert scene_objects(fourth.scene)['drawer'].opening > 0.1
    assert read_sentences(file, BASE) == read_sentences(file, BASE)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('{}', 'expected a list'),
        ('- just words', 'entry 1: expected keys and values'),
        ('- {seed: 1}', 'the sentence is missing'),
        ('- {sentence: a}', 'either seed or scene'),
        ('- {sentence: a, seed: 1, tarket: x}', "Did you mean 'target'"),
        ('- {sentence: a, seed: -1}', 'whole number'),
        ('- {sentence: a, seed: 1, task: pik}', "Did you mean 'pick'"),
        ('- {sentence: a, scene: [red cube]}', 'the target is missing'),
        ('- {sentence: a, scene: [red kube], target: red cube}', "Did you mean 'cube'"),
        ('- {sentence: a, scene: [red cube, red ball], target: red}', 'fits 2 objects'),
        ('- {sentence: a, scene: [white bowl], target: bowl}', 'cannot be done with it'),
        ('- {sentence: a, scene: [red cube, blue ball], target: cube, destination: ball}', 'no destination for'),
        ('- {sentence: a, scene: [red cube], target: cube, task: put}', 'needs a destination'),
        ('- {sentence: a, scene: [{object: red cube, at: [2, 0]}], target: cube}', 'the arm works in'),
        ('- {sentence: a, scene: [{object: red cube, at: here}], target: cube}', 'not a place'),
        ('- sentence: [', 'not valid YAML'),
    ],
)
def test_files_of_sentences_that_cannot_be_used(tmp_path, text, words):
    file = tmp_path / 'own.yaml'
    file.write_text(text)
    with pytest.raises((ConfigError, TaskError), match=re.escape(words)):
        read_sentences(file, BASE)


def test_words_for_objects():
    assert vars(read_words('the tiny crimson block')) == {'category': 'cube', 'color': 'red', 'size': 'small'}
    with pytest.raises(ConfigError, match='cannot read'):
        read_sentences('/nowhere/at/all.yaml', BASE)


# -- how it is run


@pytest.fixture(scope='module')
def cell():
    made = Cell(setup_in('', 'expert'))
    yield made
    made.close()


def test_the_expert_does_what_a_sentence_means_that_nobody_can_parse(cell):
    case = cases(SMALL, BASE)[0]
    with pytest.raises(TaskError):
        ExpertPolicy(0.1, 8)  # the sentence is not of the grammar ...
        make_episode('pick', 0, case.episode.instruction)
    row = cell.run(case)  # ... and is judged by target and destination all the same
    assert (row['success'], row['outcome'], row['progress']) == (True, 'solved', 1.0)
    assert row['instruction'] == case.episode.instruction and row['target'] == case.episode.target
    assert row['said'][0].startswith('I will') and row['said_right'] is True
    assert row['steps'] == round(row['duration'] / POLICY.step_period)
    assert row['jerk'] > 1.0 and row['collisions'] == 0
    silent = cell.run(replace(case, sentence=False))
    assert silent['success'] and silent['said'] == [] and silent['said_right'] is None


def test_without_the_sentence_nobody_thinks(tmp_path):
    policy = Double()
    found = short(multiplied(cases(SMALL, BASE)[:1], [True, False], []))
    run_cases(found[:1], setup_in(tmp_path), policy=policy)
    assert policy.thoughts > 0
    policy.thoughts = 0
    rows = run_cases(found[1:], setup_in(tmp_path), policy=policy)
    assert policy.thoughts == 0 and policy.seen
    assert {o.instruction for o in policy.seen} == {rows[0]['instruction']}
    assert all(o.privileged is None for o in policy.seen)


def test_frames_are_fresh_unless_they_are_lost():
    def ages(disturbance):
        policy = Double()
        moments = []
        run_episode(
            replace(make_episode('pick', 0), time_limit=3.0),
            policy,
            sim=SETUP.sim,
            embodiment=SETUP.embodiment,
            control=SETUP.control,
            policy_settings=POLICY,
            record=moments.append,
            views=False,
            disturbance=disturbance,
        )
        seen = [(m.time, m.observation) for m in moments if m.observation is not None]
        return [t - (o.stamp_ns - 1_000_000_000) * 1e-9 for t, o in seen]

    for latency in (0.0, 0.13):
        fresh = ages(Disturbance(latency=latency))
        assert len(fresh) > 10
        assert max(fresh) < 1.0 / 15.0 + 0.011, 'the newest frame of a camera at 15 Hz'
    lossy = ages(Disturbance(frame_drop=0.7))
    assert 0.1 < max(lossy) <= POLICY.max_view_age + 0.011
    assert lossy == ages(Disturbance(frame_drop=0.7)), 'the same frames are lost every time'


def test_pushing_things_is_counted():
    case = cases(Suite('plain', tasks={'pick': 1}), BASE)[0]

    other = next(o.name for o in case.episode.scene.objects if o.name != case.episode.target and o.size)

    class Mistaken(ExpertPolicy):
        def infer(self, observation, reasoning):
            truth = replace(observation.privileged, target=other)
            return super().infer(replace(observation, privileged=truth), reasoning)

    own = Cell(setup_in('', 'expert'), Mistaken(POLICY.step_period, POLICY.horizon))
    try:
        row = own.run(short([case], 7.0)[0])
    finally:
        own.close()
    assert (row['outcome'], row['bumped']) == ('wrong_object', [other])
    assert row['collisions'] == row['table_touches'] + len(row['bumped'])


def test_a_run_continues_where_it_stopped(tmp_path):
    found = short(multiplied(cases(SMALL, BASE), [True, False], []))
    seen = []
    rows = run_cases(found, setup_in(tmp_path), on_row=seen.append)
    assert [r['id'] for r in rows] == [case_id(c, setup_in(tmp_path).identity()) for c in found]
    assert len(seen) == 4 and all(r['outcome'] == 'not_reached' for r in rows)
    file = tmp_path / RESULTS
    lines = file.read_text().splitlines()
    file.write_text('\n'.join(lines[:3]) + '\n' + lines[3][:40])  # killed while writing
    seen.clear()
    again = run_cases(found, setup_in(tmp_path), on_row=seen.append)
    assert len(seen) == 1
    assert [{k: v for k, v in r.items() if k != 'wall'} for r in again] == [
        {k: v for k, v in r.items() if k != 'wall'} for r in rows
    ]
    assert len(earlier(file)) == 4
    # Another configuration is another measurement.
    other = setup_in(tmp_path, control=config.replace(SETUP.control, strategy='blend'))
    run_cases(found[:1], other, on_row=seen.append)
    assert len(seen) == 2 and len(earlier(file)) == 5


def test_changed_weights_are_another_measurement(tmp_path):
    weights = tmp_path / 'model'
    weights.mkdir()
    (weights / 'model.safetensors').write_bytes(b'1')
    one = replace(SETUP, policy=config.replace(POLICY, policy='instructvla', checkpoint=str(weights)))
    before = one.identity()
    assert before == one.identity()
    (weights / 'model.safetensors').write_bytes(b'2')
    assert one.identity() != before


def test_a_copy_of_the_weights_is_the_same_measurement(tmp_path):
    places = [tmp_path / name for name in ('here', 'there')]
    for place in places:
        place.mkdir()
        (place / 'model.safetensors').write_bytes(b'1')
    os.utime(places[1] / 'model.safetensors', (1, 1))
    (places[1] / 'README.md').write_text('The card says more.')
    here, there = (
        replace(SETUP, policy=config.replace(POLICY, policy='instructvla', checkpoint=str(place))) for place in places
    )
    assert here.identity() == there.identity()


def test_weights_of_the_package_count_too(tmp_path, monkeypatch):
    weights = tmp_path / 'models' / 'small'
    weights.mkdir(parents=True)
    (weights / 'config.json').write_text('{}')
    monkeypatch.setattr(resources, 'share_directory', lambda: tmp_path)
    one = replace(SETUP, policy=config.replace(POLICY, policy='instructvla', checkpoint='small'))
    before = one.identity()
    (weights / 'config.json').write_text('{ }')
    assert one.identity() != before


def test_several_processes_give_the_same_rows(tmp_path):
    found = short(cases(SMALL, BASE))
    alone = run_cases(found, setup_in(tmp_path / 'a'))
    beside = run_cases(found, setup_in(tmp_path / 'b'), workers=2)
    assert told(alone) == told(beside)


class Crowd(Double):
    """A policy of which several can play at once; counts how many were asked together."""

    def __init__(self, rounds=None):
        super().__init__()
        self.rounds = [] if rounds is None else rounds

    def member(self):
        return Crowd(self.rounds)

    def act_each(self, members, asks, reasonings):
        self.rounds.append(len(asks))
        assert len({id(m) for m in members}) == len(asks), 'every episode has its own'
        return [act_alone(*one) for one in zip(members, asks, reasonings, strict=True)]


def told(rows):
    return [{k: v for k, v in r.items() if k != 'wall'} for r in rows]


def test_episodes_played_together_are_those_played_alone(tmp_path):
    found = short(multiplied(cases(SMALL, BASE), [True, False], []))
    found += [replace(found[0], episode=replace(found[0].episode, time_limit=0.0))]  # ends before it asks anything
    alone = run_cases(found, setup_in(tmp_path / 'a'), policy=Double())
    for size in (2, 3):
        policy = Crowd()
        together = run_cases(found, replace(setup_in(tmp_path / str(size)), together=size), policy=policy)
        assert told(together) == told(alone)
        assert max(policy.rounds) == size
    assert len(earlier(tmp_path / '3' / RESULTS)) == len(found)


def test_an_error_leaves_nothing_behind_in_the_cell():
    class Broken(Crowd):
        broken = True

        def act_each(self, members, asks, reasonings):
            if Broken.broken and self.rounds:
                raise RuntimeError('once')
            return super().act_each(members, asks, reasonings)

    found = short(cases(SMALL, BASE))
    cell = Cell(replace(setup_in(''), together=2), Broken())
    try:
        with pytest.raises(RuntimeError, match='once'):
            list(cell.run_many(found))
        Broken.broken = False
        assert [row['seed'] for row in cell.run_many(found[:1])] == [found[0].episode.seed]
    finally:
        cell.close()


def test_a_policy_that_cannot_share_is_asked_alone(tmp_path):
    found = short(cases(SMALL, BASE))
    policy = Double()
    run_cases(found, replace(setup_in(tmp_path), together=4), policy=policy)
    assert policy.seen


def test_what_goes_wrong_in_a_worker_is_told(tmp_path):
    broken = setup_in(tmp_path, embodiment=config.replace(SETUP.embodiment, tcp_frame='nowhere'))
    with pytest.raises(InstructVLAError, match='nowhere'):
        run_cases(short(cases(SMALL, BASE)), broken, workers=2)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'strategies': ['replce']}, "Did you mean 'replace'"),
        ({'workers': 0}, 'at least one'),
        ({'together': 0}, 'at least one'),
        ({'none': True}, 'nothing to run'),
    ],
)
def test_what_cannot_run_is_refused(tmp_path, change, words):
    found = [] if 'none' in change else multiplied(cases(SMALL, BASE), [True], change.get('strategies', []))
    with pytest.raises(ConfigError, match=words):
        setup = replace(setup_in(tmp_path), together=change.get('together', 1))
        run_cases(found, setup, change.get('workers', 1))
    assert not (tmp_path / RESULTS).exists()


@pytest.mark.parametrize('strategy', ['replace', 'ensemble', 'blend'])
def test_strategies_under_latency(cell, strategy):
    case = multiplied(cases(Suite('plain', tasks={'pick': 1}), BASE), [True], [strategy], 0.2)[0]
    row = cell.run(case)
    assert row['success'], row
    assert (row['strategy'], row['latency']) == (strategy, 0.2)


def test_real_time_chunking_needs_a_model(cell):
    case = multiplied(cases(Suite('plain', tasks={'pick': 1}), BASE), [True], ['realtime'], 0.2)[0]
    with pytest.raises(ConfigError, match="'expert' has no real-time chunking"):
        cell.run(case)


def test_a_model_of_some_thousand_parameters(tmp_path):
    from model_doubles import needs_model, small_bundle

    needs_model()
    from instructvla_ros.model.policy import InstructVLAPolicy

    settings = config.replace(POLICY, policy='instructvla', checkpoint='in memory', horizon=6, device='cpu')
    setup = replace(SETUP, policy=settings, folder=str(tmp_path), videos='all')
    policy = InstructVLAPolicy(small_bundle(tmp_path), settings, SETUP.embodiment)
    found = short(multiplied(cases(SMALL, BASE)[:1], [True, False], ['replace', 'realtime'], 0.2), 0.7)
    try:
        rows = run_cases(found, setup, policy=policy)
    except SetupError as err:
        pytest.skip(f'no OpenGL: {err}')
    assert [(r['strategy'], r['sentence']) for r in rows] == [
        ('replace', True),
        ('replace', False),
        ('realtime', True),
        ('realtime', False),
    ]
    assert all(bool(r['said']) == r['sentence'] for r in rows)
    assert all(r['chunks'] > 1 for r in rows)
    assert all((tmp_path / r['video']).stat().st_size > 500 for r in rows)
    again = run_cases(found, replace(setup, videos='none'), policy=policy)
    assert again == rows, 'videos do not change what is measured'


@pytest.mark.parametrize('policy', ['expert', 'hold'])
def test_policies_that_need_no_pictures_are_filmed_too(tmp_path, policy):
    found = short(cases(SMALL, BASE)[:1], 0.5)
    try:
        (row,) = run_cases(found, setup_in(tmp_path, policy, videos='failures'))
    except SetupError as err:
        pytest.skip(f'no OpenGL: {err}')
    assert not row['success'] and (tmp_path / row['video']).stat().st_size > 500


# -- what is made of it


def rows_by_hand():
    case = cases(SMALL, BASE)[0]
    out = []
    for seed, with_it, without in (
        (1, True, False),
        (2, True, False),
        (3, True, True),
        (4, False, True),
        (5, False, False),
    ):
        for sentence, success in ((True, with_it), (False, without)):
            out.append(
                {
                    'suite': 'situated',
                    'variant': '',
                    'strategy': '',
                    'latency': 0.0,
                    'task': 'pick' if seed < 4 else 'put',
                    'seed': seed,
                    'instruction': '<b>the odd one</b>',
                    'kind': 'odd_one_out' if seed < 3 else 'largest',
                    'sentence': sentence,
                    'target': case.episode.target,
                    'destination': '',
                    'success': success,
                    'outcome': 'solved' if success else 'wrong_object',
                    'reason': '' if success else 'took the <other>',
                    'progress': 1.0 if success else 0.2,
                    'success_after': 5.0 if success else None,
                    'steps': 50,
                    'table_touches': 0,
                    'bumped': ['a'] if seed == 5 else [],
                    'collisions': int(seed == 5),
                    'limit_hits': 2,
                    'jerk': 10.0,
                    'said': ['I will pick up the red cube.'] if sentence else [],
                    'said_right': (seed < 4) if sentence else None,
                    'video': '' if success else 'videos/x.mp4',
                }
            )
    return out


def test_scores_of_rows_by_hand():
    summary = suite_scores.summarize(rows_by_hand())
    spoken, silent = summary['table']
    assert (spoken['sentence'], spoken['successes'], spoken['episodes'], spoken['rate']) == (True, 3, 5, 0.6)
    assert (silent['sentence'], silent['successes']) == (False, 2)
    assert spoken['interval'] == pytest.approx([0.2307, 0.8824], abs=1e-4)  # Wilson, 3 of 5
    assert spoken['said_right'] == 0.6 and silent['said_right'] is None
    assert spoken['outcomes'] == {'solved': 3, 'wrong_object': 2}
    assert spoken['bumped'] == 0.2 and spoken['progress'] == pytest.approx(0.68)
    pair = summary['paired']['situated']
    assert (pair['gained'], pair['lost'], pair['episodes'], pair['change']) == (2, 1, 5, 0.2)
    # (2.5 - 1.5) / 7, and 1.96 sqrt(4 - 1 / 7) / 7 on either side
    assert pair['interval'] == pytest.approx([0.1429 - 0.5499, 0.1429 + 0.5499], abs=1e-3)
    same = suite_scores.paired(rows_by_hand()[:4:2], rows_by_hand()[:4:2])
    assert same['change'] == 0.0 and same['interval'] == pytest.approx([-0.49, 0.49]), 'two that agree prove little'
    assert {k: e['successes'] for k, e in summary['kinds']['situated'].items()} == {'largest': 1, 'odd_one_out': 2}
    assert suite_scores.paired(rows_by_hand()[::2], []) is None


class Page(HTMLParser):
    """Collects text and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.words, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ('src', 'href') and v]

    def handle_data(self, data):
        self.words.append(data)


def test_the_report_is_one_page_that_says_what_happened(tmp_path):
    facts = {'policy': 'instructvla', 'privileged': False, 'checkpoint': 'm/x', 'checkpoint_name': 'x', 'revision': 'r'}
    rows = rows_by_hand()
    hard = [{**r, 'suite': 'robustness', 'variant': 'latency 200 ms', 'latency': 0.2} for r in rows if r['sentence']]
    ways = [{**r, 'strategy': w, 'latency': 0.2} for w in ('replace', 'blend') for r in rows if r['sentence']]
    suite_report.write_results(
        tmp_path, [*rows, *hard, *ways], facts, [read_suite('situated')], 'instructvla evaluate sim'
    )
    text = (tmp_path / 'report.html').read_text()
    page = Page(text)
    said = ' '.join(' '.join(page.words).split())
    assert {link for link in page.links if not link.startswith('data:')} == {'videos/x.mp4'}
    assert 'http' not in text.replace('http-equiv', '')
    for words in (
        '+20.0 points',
        '60 %',
        '3 of 5',
        'odd one out',
        'latency 200 ms',
        'blend',
        '<b>the odd one</b>',
        'a leaf',
    ):
        assert words in said, words
    assert '<b>the odd one</b>' not in text, 'what people type is text'
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['paired']['situated']['gained'] == 2


def test_the_command(tmp_path, capsys):
    out = tmp_path / 'run'
    assert cli.main(['evaluate', 'sim', '--policy', 'expert', '--suite', 'situated', '--episodes', '2', '--list']) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 4 and all(line.startswith('situated') for line in listed)
    file = tmp_path / 'own.yaml'
    file.write_text(
        '- {sentence: the thing that looks like a tomato, scene: [red ball, blue cube], target: red ball}\n'
    )
    arguments = ['evaluate', 'sim', '--instructions', str(file), '--workers', '1', '--out', str(out), '--json']
    assert cli.main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed['table'][0]['successes'] == 1 and printed['policy'] == 'expert'
    assert (out / 'summary.json').is_file()
    said = Page((out / 'report.html').read_text()).words
    assert 'Your sentences' in said and '“the thing that looks like a tomato”' in said
    assert cli.main(arguments[:-1]) == 0
    assert '1 of 1 episodes are already there' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--suite', 'plane'], "Did you mean 'plain'"),
        (['--policy', 'instructvla'], 'needs --checkpoint'),
        (['--policy', 'exprt'], "Did you mean 'expert'"),
        (['--strategies', 'repace'], "Did you mean 'replace'"),
        (['--episodes', '-1'], 'whole number'),
        (['--latency', '-1', '--episodes', '1'], 'latency'),
    ],
)
def test_mistakes_on_the_command_line(capsys, arguments, words):
    assert cli.main(['evaluate', 'sim', *arguments]) == 2
    assert words in capsys.readouterr().err
