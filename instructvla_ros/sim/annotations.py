"""Language for episodes of the simulator in the VLA-IT format: instructions of three families, with the robot's answer.

Families (paper, instruction aggregation and situated reasoning of SimplerEnv-Instruct): *plain* sentences of
:mod:`language`; *aggregation*: paraphrases and references by attribute, synonym, place and negation; *situated*:
sentences that never name the object's colour, such as 'something the colour of grass'. Every sentence is true in the
scene as it is planned to stand, and exactly one object fits it (:mod:`references`). Left and right are those of the
third-person picture. Training and held-out sentences come from two books that share no pattern (:mod:`phrasebook`);
plain sentences are the same in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datatypes import SceneObject
from ..errors import TaskError, suggest
from .book import Book, thinned
from .describe import caption, questions
from .language import Command, Description, sentences
from .phrasebook import BOOKS, knowledge
from .reasons import reason
from .references import Reference, View, describing, description, hint_for, named, referring
from .relations import scene_objects
from .tasks import Episode

FAMILIES = ('plain', 'aggregation', 'situated')
SPLITS = ('train', 'held_out', 'all')


@dataclass(frozen=True)
class Phrase:
    """An instruction and what the robot says to it.

    Attributes:
        text: lower case.
        response: what leads to the decision (:mod:`reasons`), then the decision: first person, names the object by
            colour and noun, and the next action.
        kind: the rule that made it, such as 'relation' or 'color_hint'.
        patterns: the lines of the book it was made from.
    """

    text: str
    response: str
    kind: str
    patterns: tuple[str, ...] = ()


def instructions(episode: Episode, family: str, rng: np.random.Generator, split: str = 'train') -> list[Phrase]:
    """Sentences of a family that are true and unambiguous in the scene of ``episode``.

    One for every reference to the object; the frame around it, the words for its destination, the thing in a colour
    hint and the spelling of 'colour' are drawn from ``rng``. Situated sentences exist for pick and put only.

    Args:
        split: 'train', 'held_out' or 'all'.

    Raises:
        TaskError: unknown family or split.
    """
    if family not in FAMILIES:
        raise TaskError(f'unknown family of instructions {family!r}.{suggest(family, FAMILIES)}')
    if split not in SPLITS:
        raise TaskError(f'unknown split {split!r}.{suggest(split, SPLITS)}')
    objects = scene_objects(episode.scene)
    answer = response(episode)
    if family == 'plain':
        return [Phrase(text, answer, 'plain') for text in sentences(command_of(episode))]
    view = View.of(objects, episode.target, episode.destination)
    make = _aggregated if family == 'aggregation' else _situated
    books = [thinned(book, rng) for name, book in BOOKS.items() if split in (name, 'all')]
    return [
        Phrase(_tidy(text, rng), ' '.join(s for s in (reason(reference, view), answer) if s), kind, patterns)
        for book in books
        for text, kind, patterns, reference in make(episode, book, view, rng)
    ]


def response(episode: Episode) -> str:
    """What the robot says before it starts, such as 'I will put the red cube in the bowl.'."""
    objects = scene_objects(episode.scene)
    if episode.task in ('open_drawer', 'close_drawer'):
        return f'I will {episode.task.split("_")[0]} the drawer.'
    name = named(View.of(objects, episode.target, episode.destination))
    if episode.task == 'pick':
        return f'I will pick up the {name}.'
    verb = {'put': 'put', 'stack': 'stack', 'move_near': 'move'}[episode.task]
    return f'I will {verb} the {name} {episode.relation} the {_goal(episode, objects)}.'


def command_of(episode: Episode) -> Command:
    """Plain words for what the episode asks, whatever its own sentence says; size and colour only where needed."""
    objects = scene_objects(episode.scene)
    t = objects[episode.target]
    if t.category == 'drawer':
        return Command(episode.task, Description('drawer'))
    words = named(View.of(objects, episode.target, episode.destination))
    target = Description(t.category, t.color, t.size if t.size in words.split() else '')
    if not episode.destination:
        return Command(episode.task, target)
    d, words = objects[episode.destination], _goal(episode, objects)
    size, color = (word if word in words.split() else '' for word in (d.size, d.color))
    return Command(episode.task, target, Description(d.category, color, size), episode.relation)


def alt_instruction(episode: Episode, rng: np.random.Generator) -> dict[str, Any]:
    """Annotation of one episode: 'Caption' a string; 'QA', 'CR' and 'CC' lists of {'question', 'answer'}.

    One to three items each, of training sentences only; 'CC' is empty for tasks without situated sentences.
    """
    objects = list(scene_objects(episode.scene).values())
    asked = questions(objects, rng)
    return {
        'Caption': caption(objects, rng),
        'QA': [{'question': q, 'answer': a} for q, a in _draw(asked, 3, rng)],
        'CR': _entries(instructions(episode, 'aggregation', rng), rng),
        'CC': _entries(instructions(episode, 'situated', rng), rng),
    }


def _entries(phrases: Sequence[Phrase], rng: np.random.Generator) -> list[dict[str, str]]:
    """Up to three, of different kinds while there are any: kinds with many wordings must not crowd out the others."""
    kinds: dict[str, list[Phrase]] = {}
    for phrase in phrases:
        kinds.setdefault(phrase.kind, []).append(phrase)
    chosen = [group[int(rng.integers(len(group)))] for group in _draw(list(kinds.values()), 3, rng)]
    return [{'question': p.text, 'answer': p.response} for p in chosen]


def _draw(items: Sequence[Any], count: int, rng: np.random.Generator) -> list[Any]:
    return [items[int(i)] for i in rng.permutation(len(items))[:count]]


def _goal(episode: Episode, objects: Mapping[str, SceneObject]) -> str:
    goal = objects[episode.destination]
    short = description(goal, objects.values(), short=goal.category in ('bowl', 'plate', 'drawer'))
    return short or ' '.join(w for w in (goal.size, goal.color, goal.category) if w)


Made = tuple[str, str, tuple[str, ...], Reference]


def _aggregated(episode: Episode, book: Book, view: View, rng: np.random.Generator) -> Iterable[Made]:
    task = episode.task
    if task in ('open_drawer', 'close_drawer'):
        for line in book.drawer[task.split('_')[0]]:
            yield line, 'paraphrase', (line,), Reference('the drawer', '', '')
        return
    plain = Reference('the ' + named(view), '', '')
    for lines, kind in (
        (book.polite_pick if task == 'pick' else book.polite_put, 'polite'),
        (book.verb_pick if task == 'pick' else book.verb_put, 'verb'),
    ):
        for line in lines:
            yield _sentence(episode, book, view, line, plain, kind, rng)
    for reference in referring(book, view):
        line = _one(book.pick if task == 'pick' else book.put, rng)
        yield _sentence(episode, book, view, line, reference, reference.kind, rng)


def _situated(episode: Episode, book: Book, view: View, rng: np.random.Generator) -> Iterable[Made]:
    if episode.task not in ('pick', 'put'):
        return
    pick = episode.task == 'pick'
    for reference in describing(book, view, rng):
        line = _one((*book.pick, *book.want_pick) if pick else (*book.put, *book.want_put), rng)
        yield _sentence(episode, book, view, line, reference, reference.kind, rng, situated=True)
    for line in book.hint_pick if pick else book.hint_put:
        hint = hint_for(book, view, rng)
        if hint:
            whole = Reference(hint, 'color_context', '', hint)
            yield _sentence(episode, book, view, line, whole, whole.kind, rng, situated=True)


def _sentence(
    episode: Episode,
    book: Book,
    view: View,
    line: str,
    reference: Reference,
    kind: str,
    rng: np.random.Generator,
    *,
    situated: bool = False,
) -> Made:
    where, pattern = _where(episode, book, view, rng, situated) if '{w}' in line else ('', '')
    text = line.format(t=reference.text, hint=reference.text, w=where)
    return text, kind, tuple(p for p in (line, reference.pattern, pattern) if p), reference


def _where(episode: Episode, book: Book, view: View, rng: np.random.Generator, situated: bool) -> tuple[str, str]:
    """Words for the destination with the pattern they came from, which is empty for the plain words of both books."""
    objects = {o.name: o for o in view.all}
    goal, name = objects[episode.destination], f'the {_goal(episode, objects)}'
    if episode.task != 'put':
        line = _one(book.stack if episode.task == 'stack' else book.near, rng)
        return line.format(b=name), line
    alone = sum(o.category == goal.category for o in view.all) == 1
    if situated and alone and rng.random() < 0.5:
        line = _one(book.where[goal.category], rng)
        return line, line
    words = [name]
    if not situated and goal.color:
        words.append(f'the {goal.color} {goal.category}')
    return f'{episode.relation} {_one(words, rng)}', ''


def _one(lines: Sequence[str], rng: np.random.Generator) -> str:
    return lines[int(rng.integers(len(lines)))]


def _tidy(text: str, rng: np.random.Generator) -> str:
    """Without a comma at the end; 'colour' is spelt 'color' in half of the sentences."""
    text = re.sub(r',\s*,', ',', text).rstrip(' ,')
    return text.replace('colour', 'color') if rng.random() < 0.5 else text


__all__ = [
    'FAMILIES',
    'SPLITS',
    'Phrase',
    'alt_instruction',
    'caption',
    'command_of',
    'instructions',
    'knowledge',
    'questions',
    'response',
]
