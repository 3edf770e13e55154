"""Books with alternatives, the choice of lines for one scene, and what is said before a decision."""

from __future__ import annotations

import string

import numpy as np
from scene_reader import CAMERA

from instructvla_ros.sim import annotations as an
from instructvla_ros.sim.book import FEW, MANY, lines, thinned
from instructvla_ros.sim.phrasebook import BOOKS
from instructvla_ros.sim.reasons import decision, listing
from instructvla_ros.sim.relations import scene_objects
from instructvla_ros.sim.tasks import make_episode


def groups(book):
    for name, value in vars(book).items():
        for key, group in value.items() if hasattr(value, 'items') else [('', value)]:
            yield (name, key), group


def test_a_line_with_alternatives_stands_for_all_of_them():
    assert lines('[lift|grab] {t}[| up]', 'lift {t}') == ('lift {t}', 'lift {t} up', 'grab {t}', 'grab {t} up')
    assert lines('the {noun}[|,] not {a}') == ('the {noun} not {a}', 'the {noun}, not {a}')
    for book in BOOKS.values():
        for where, group in groups(book):
            assert group and len(set(group)) == len(group), where
            assert not [line for line in group if '[' in line or ']' in line or '  ' in line or ' ,' in line], where


def test_held_out_lines_have_no_slot_that_training_does_not_fill():
    for where, group in groups(BOOKS['held_out']):
        other = dict(groups(BOOKS['train'])).get(where, ())
        held, trained = (
            {f for line in g for _, f, _, _ in string.Formatter().parse(line) if f} for g in (group, other)
        )
        assert held <= trained, where


def test_a_scene_uses_few_lines_of_a_large_group_and_all_of_a_small_one():
    book = BOOKS['train']
    once, again = (thinned(book, np.random.default_rng(3)) for _ in range(2))
    assert once == again != thinned(book, np.random.default_rng(4))
    chosen = dict(groups(once))
    for where, group in groups(book):
        assert set(chosen[where]) <= set(group)
        assert len(chosen[where]) == (len(group) if len(group) <= MANY else FEW), where
    used = {line for k in range(300) for line in thinned(book, np.random.default_rng(k)).not_color}
    assert used == set(book.not_color)
    # The suites are made from the held-out book: what they ask must not depend on the size of the other one.
    held = BOOKS['held_out']
    assert thinned(held, np.random.default_rng(0)) == held


def test_what_is_seen_is_listed_in_the_order_of_the_picture():
    for seed in range(40):
        objects = list(scene_objects(make_episode('put', seed).scene).values())
        by_column = sorted(objects, key=lambda o: CAMERA.project(o.pose[:3, 3])[0][0, 0])
        by_distance = sorted(objects, key=lambda o: float(np.hypot(*o.pose[:2, 3])))
        for look, ordered in (('across', by_column), ('depth', by_distance)):
            words = listing(objects, look).split(', ')
            assert [w.split()[-1] for w in words] == [o.category for o in ordered]
            assert all(
                o.color in w and (o.size == 'medium' or o.size in w) for o, w in zip(ordered, words, strict=True)
            )


def test_a_sentence_says_what_it_rests_on():
    rng = np.random.default_rng(0)
    said = {}
    for seed in range(60):
        episode = make_episode(('pick', 'put')[seed % 2], seed)
        color = scene_objects(episode.scene)[episode.target].color
        for family in ('aggregation', 'situated'):
            for phrase in an.instructions(episode, family, rng):
                before = phrase.response.removesuffix(f'{decision(phrase.response)}.').strip()
                said.setdefault(phrase.kind, set()).add(bool(before))
                if phrase.kind in ('color_hint', 'color_context', 'noun_hint'):
                    assert before.endswith(f' is {color}.') and before[: -len(f' is {color}.')].lower() in phrase.text
                if phrase.kind in ('negation', 'size', 'odd_one_out', 'largest', 'smallest'):
                    assert before.startswith('From left to right: ')
    assert {k: v for k, v in said.items() if len(v) > 1} == {'attribute': {True, False}}
    assert [k for k in ('polite', 'verb', 'synonym') if said[k] != {False}] == []


def test_the_decision_is_the_last_sentence():
    assert decision('Grass is green. I will pick up the green ball.') == 'I will pick up the green ball'
    assert decision('I will pick up the green ball.') == 'I will pick up the green ball'
    assert decision('') == ''
