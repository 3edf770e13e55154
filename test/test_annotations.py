"""Language of episodes: an evaluator of its own reads every sentence and finds the object that it means."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from scene_reader import CAMERA, COLOR, FREE, LENS, LOOKS, NOUN, PLACE, PLACES, WIDTH, Scene

from instructvla_ros.errors import TaskError
from instructvla_ros.sim import annotations as an
from instructvla_ros.sim import phrasebook
from instructvla_ros.sim.language import parse
from instructvla_ros.sim.reasons import decision
from instructvla_ros.sim.relations import scene_objects
from instructvla_ros.sim.tasks import TASKS, make_episode

SEEDS = range(200)


def reference(phrase):
    """The words for the object, cut out of the frame around them, and the words for the place."""
    frame = phrase.patterns[0].replace('colour', 'colou?r')
    pattern = re.escape(frame).replace(r'colou\?r', 'colou?r')
    for slot, inside in (('t', '.+?'), ('hint', '.+?'), ('w', PLACE)):
        pattern = pattern.replace(re.escape('{' + slot + '}'), f'(?P<{slot}>{inside})')
    m = re.fullmatch(pattern, phrase.text) or re.fullmatch(pattern, phrase.text + ',')
    assert m, (phrase.text, phrase.patterns)
    groups = m.groupdict()
    return (groups.get('t') or groups.get('hint') or '').rstrip(','), groups.get('w', '')


@pytest.fixture(scope='module')
def spoken():
    """All sentences of pick and put over many seeds: (episode, family, split) -> phrases."""
    rng = np.random.default_rng(0)
    return [
        (episode, family, split, an.instructions(episode, family, rng, split))
        for task in ('pick', 'put')
        for episode in (make_episode(task, seed) for seed in SEEDS)
        for family in ('aggregation', 'situated')
        for split in ('train', 'held_out')
    ]


def test_every_sentence_is_true_and_means_one_object(spoken):
    seen = Counter()
    for episode, _, _, phrases in spoken:
        scene = Scene(episode)
        for phrase in phrases:
            words, _ = reference(phrase)
            found = scene.meant(words)
            assert [o.name for o in found] == [episode.target], (phrase, [o.name for o in found], episode.scene.objects)
            seen[phrase.kind] += 1
    wanted = (
        'synonym attribute size relation negation polite verb '
        'color_hint color_context noun_hint size_hint odd_one_out largest smallest use'
    )
    assert {k: seen[k] for k in wanted.split() if seen[k] < 20} == {}


@pytest.mark.parametrize('task', ['move_near', 'stack'])
def test_the_other_tasks_are_paraphrased_too(task):
    rng = np.random.default_rng(1)
    for seed in range(60):
        episode = make_episode(task, seed)
        for split in ('train', 'held_out'):
            phrases = an.instructions(episode, 'aggregation', rng, split)
            assert len(phrases) >= 4
            for phrase in phrases:
                words, where = reference(phrase)
                assert [o.name for o in Scene(episode).meant(words)] == [episode.target], phrase
                assert where
        assert an.instructions(episode, 'situated', rng) == []


def test_the_evaluator_finds_a_wrong_sentence():
    episodes = (make_episode('pick', k) for k in SEEDS)
    episode = next(e for e in episodes if len({o.color for o in e.scene.objects}) == 3)
    scene = Scene(episode)
    wrong = next(o for o in episode.scene.objects if o.name != episode.target)
    assert [o.name for o in scene.meant(f'the {wrong.color} one')] == [wrong.name]
    ends = [scene.meant(f'the thing on the far {end}') for end in ('left', 'right')]
    assert ends[0] != ends[1]


def test_the_place_is_named_truly(spoken):
    seen = Counter()
    for episode, family, _, phrases in spoken:
        if episode.task != 'put':
            continue
        goal = scene_objects(episode.scene)[episode.destination]
        for phrase in phrases:
            _, where = reference(phrase)
            nouns = re.findall(r'\b(bowl|plate|drawer)\b', where)
            hinted = [n for n, words in PLACES.items() if any(re.search(rf'\b{w}\b', where) for w in words.split())]
            assert (nouns or hinted) == [goal.category], (where, phrase.text)
            colors = re.findall('|'.join(LOOKS), where)
            assert colors in ([], [goal.color])
            assert not (colors and family == 'situated')
            seen['hint' if hinted and not nouns else 'name'] += 1
    assert min(seen.values()) > 200


def test_episodes_that_have_something_to_say(spoken):
    short = Counter()
    for _, family, split, phrases in spoken:
        short[family, split] += len(phrases) < (1 if family == 'situated' else 2)
    for key, missing in short.items():
        assert missing <= 0.05 * 2 * len(SEEDS), f'{key}: {missing} episodes have too few sentences'


def test_situated_sentences_do_not_give_the_object_away(spoken):
    names = set(COLOR) | set(LOOKS)
    for episode, family, _, phrases in spoken:
        target = scene_objects(episode.scene)[episode.target]
        own = {target.category} | {w for w, noun in NOUN.items() if noun == target.category}
        for phrase in phrases if family == 'situated' else ():
            said = set(re.findall(r'[a-z]+', reference(phrase)[0]))
            assert not said & names, phrase.text
            # The noun helps only where a thing of the same colour stands beside it; 'ice cube' is no noun of a toy.
            if phrase.kind not in ('noun_hint', 'use'):
                assert not said & own, phrase.text


def test_the_splits_share_no_pattern_and_no_sentence(spoken):
    patterns, texts = defaultdict(set), defaultdict(set)
    for _, _, split, phrases in spoken:
        for phrase in phrases:
            assert phrase.patterns
            patterns[split] |= set(phrase.patterns)
            texts[split].add(phrase.text)
    assert not patterns['train'] & patterns['held_out']
    assert not texts['train'] & texts['held_out']
    assert min(len(p) for p in patterns.values()) > 60

    def lines(value):
        if isinstance(value, str):
            return {value}
        return set().union(*(lines(v) for v in (value.values() if hasattr(value, 'values') else value)), set())

    books = [lines(vars(phrasebook.BOOKS[name])) for name in ('train', 'held_out')]
    assert not books[0] & books[1]


def test_held_out_sentences_need_no_word_that_training_never_shows(spoken):
    def words(text):
        return set(re.findall(r"[a-z']+", text.lower()))

    known = set().union(*(words(q) | words(a) for q, a in an.knowledge()))
    rng = np.random.default_rng(3)
    for episode, _, split, phrases in spoken:
        if split == 'train':
            for phrase in phrases:
                known |= words(phrase.text) | words(phrase.response)
        known |= words(episode.instruction)
    for seed in range(40):
        objects = scene_objects(make_episode('put', seed).scene)
        known |= words(an.caption(objects, rng))
        for question, answer in an.questions(objects, rng):
            known |= words(question) | words(answer)
    held = [p for _, _, split, phrases in spoken if split == 'held_out' for p in phrases]
    assert set().union(*(words(p.text) for p in held)) - known == set()


def test_the_answer_names_the_object_and_the_action(spoken):
    for episode, _, _, phrases in spoken:
        target = scene_objects(episode.scene)[episode.target]
        for phrase in phrases:
            decided = decision(phrase.response)
            assert decided.startswith('I will ') and phrase.response.endswith(f'{decided}.')
            assert len(decided.split()) <= 12 and len(phrase.response.split()) <= 40
            command = parse(decided.removeprefix('I will '))
            assert (command.task, command.target.color, command.target.category) == (
                episode.task,
                target.color,
                target.category,
            )


@pytest.mark.parametrize('task', TASKS)
def test_plain_sentences_are_understood_and_mean_the_episode(task):
    rng = np.random.default_rng(0)
    for seed in range(60):
        episode = make_episode(task, seed)
        objects = scene_objects(episode.scene)
        phrases = an.instructions(episode, 'plain', rng)
        assert len(phrases) >= 3
        for phrase in phrases:
            command = parse(phrase.text)
            assert command.task == task
            fits = [n for n, o in objects.items() if command.target.matches(o.category, o.color, o.size)]
            assert fits == [episode.target], (phrase.text, fits)
            if command.destination is not None:
                d = command.destination
                fits = [n for n, o in objects.items() if d.matches(o.category, o.color, o.size)]
                assert fits == [episode.destination]


def test_the_same_generator_gives_the_same_words():
    episode = make_episode('put', 5)
    a, b = (an.instructions(episode, 'situated', np.random.default_rng(7), 'all') for _ in range(2))
    assert a == b
    assert len(an.instructions(episode, 'situated', np.random.default_rng(7), 'train')) < len(a)


@pytest.mark.parametrize(
    ('family', 'split', 'near'), [('situatd', 'train', 'situated'), ('plain', 'heldout', 'held_out')]
)
def test_unknown_names_are_refused(family, split, near):
    with pytest.raises(TaskError, match=near):
        an.instructions(make_episode('pick', 0), family, np.random.default_rng(0), split)


def test_the_caption_lists_all_from_left_to_right():
    rng = np.random.default_rng(0)
    for seed in range(60):
        objects = list(scene_objects(make_episode('put', seed).scene).values())
        text = an.caption(objects, rng)
        assert 'robot' not in text and text.endswith('.')
        ordered = sorted(objects, key=lambda o: CAMERA.project(o.pose[:3, 3])[0][0, 0])
        listed = re.findall(r'(?:\ban? )((?:small |large )?(?:\w+ )?(?:cube|ball|cylinder|bowl|plate|drawer))', text)
        plain = [' '.join(w for w in (o.size.replace('medium', ''), o.color, o.category) if w) for o in ordered]
        assert listed == plain, text
    assert an.caption([], rng) == 'the table is empty.'


def test_questions_have_the_one_right_answer():
    rng = np.random.default_rng(0)
    seen = Counter()
    for seed in range(150):
        episode = make_episode('put' if seed % 2 else 'pick', seed)
        scene = Scene(episode)
        asked = an.questions(scene_objects(episode.scene), rng)
        assert len({q for q, _ in asked}) == len(asked)
        for question, answer in asked:
            seen[_check(scene, question, answer)] += 1
    assert len(seen) == 11 and min(seen.values()) >= 10, seen


def _check(scene, question, answer):
    objects = scene.objects
    if m := re.fullmatch(r'how many (\w+)s are there\?', question):
        assert answer == ('zero', 'one', 'two', 'three', 'four')[sum(o.category == m[1] for o in objects)]
        return 'count'
    if m := re.fullmatch(r'is there an? (\w+) (\w+)\?', question):
        assert answer == ('yes' if any((o.color, o.category) == m.groups() for o in objects) else 'no')
        return 'exists'
    if m := re.fullmatch(r'what colour is the (\w+)\?', question):
        assert [o.color for o in objects if o.category == m[1]] == [answer]
        return 'colour'
    if m := re.fullmatch(r'where is the (.+)\?', question):
        share = (scene.pixel(scene.mark(m[1])) / LENS.width) - 0.5
        assert {'in the middle': abs(share) < 0.1, 'on the left': share < -0.08, 'on the right': share > 0.08}[answer]
        return 'where'
    if m := re.fullmatch(r'is the (.+) near the robot or far from it\?', question):
        assert (answer == 'near') == (scene.away(scene.mark(m[1])) < 0.54)
        return 'distance'
    if m := re.fullmatch(r'is the (.+) larger than the (.+)\?', question):
        a, b = (WIDTH[scene.mark(w).size] for w in m.groups())
        assert a != b and (a > b) == (answer == 'yes')
        return 'compare'
    if m := re.fullmatch(r'do all (\w+)s have the same colour\?', question):
        colors = [o.color for o in objects if o.category == m[1]]
        assert len(colors) > 1 and (len(set(colors)) == 1) == (answer == 'yes')
        return 'all'
    if m := re.fullmatch(r'what (?:is|stands) (next to|beside|left of|right of) the (.+)\?', question):
        mark, found = scene.mark(m[2]), scene.mark(answer.removeprefix('the '))
        rest = [o for o in objects if o is not mark]
        if m[1] in ('next to', 'beside'):
            assert min(rest, key=lambda o: scene.gap(o, mark)) is found
            return 'neighbour'
        sign = -1 if m[1] == 'left of' else 1
        assert [o for o in rest if sign * (scene.pixel(o) - scene.pixel(mark)) > 0] == [found]
        return 'side'
    if m := re.fullmatch(r'which toy is the (largest|smallest)\?', question):
        sign = -1 if m[1] == 'largest' else 1
        toys = sorted((o for o in objects if o.category in FREE), key=lambda o: sign * WIDTH[o.size])
        assert toys[0] is scene.mark(answer.removeprefix('the ')) and WIDTH[toys[0].size] != WIDTH[toys[1].size]
        return 'size'
    if m := re.fullmatch(r'what is (farthest to the left|farthest to the right|closest to the robot)\?', question):
        key = {'left': scene.pixel, 'right': lambda o: -scene.pixel(o), 'robot': scene.away}[m[1].split()[-1]]
        assert min(objects, key=key) is scene.mark(answer.removeprefix('the '))
        return 'end'
    m = re.fullmatch(r'what is (\w+)\?', question)
    assert m, question
    assert [f'the {o.category}' for o in objects if o.color == m[1]] == [answer]
    return 'colour'


def test_the_annotation_of_an_episode_has_the_published_form():
    rng = np.random.default_rng(0)
    kinds = Counter()
    for seed in range(40):
        for task in TASKS:
            entry = an.alt_instruction(make_episode(task, seed), rng)
            assert set(entry) == {'Caption', 'QA', 'CR', 'CC'}
            assert isinstance(entry['Caption'], str) and entry['Caption']
            for name in ('QA', 'CR', 'CC'):
                assert len(entry[name]) <= 3
                assert all(set(item) == {'question', 'answer'} for item in entry[name])
            assert entry['QA'] and entry['CR']
            kinds[task, bool(entry['CC'])] += 1
    assert kinds['pick', True] >= 38 and kinds['put', True] >= 38
    assert not kinds['stack', True]


def test_knowledge_explains_the_words_of_both_books():
    facts = dict(an.knowledge())
    assert len(facts) == len(an.knowledge()), 'one answer for each question'
    for color, words in LOOKS.items():
        told = [q for q, a in facts.items() if a == color and q.startswith('what colour is')]
        assert all(any(re.search(rf'\b{w}\b', q) for q in told) for w in words.split()), color
    assert facts['what is a brick?'] == 'a cube'
    assert facts['what does stow mean?'] == 'put'
