"""Sentences of the tabletop tasks: what a person may say, and what it means.

A :class:`Command` is a task with descriptions of its objects. :func:`render` writes one of several sentences for it,
:func:`parse` reads free sentences back: articles, politeness, synonyms and word order are tolerated, anything else
is refused with the nearest words that are known. Nothing here knows a scene; :mod:`tasks` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from ..errors import TaskError, suggest

COLORS = {
    'red': ('red', 'crimson', 'scarlet'),
    'green': ('green',),
    'blue': ('blue', 'navy'),
    'yellow': ('yellow',),
    'orange': ('orange',),
    'purple': ('purple', 'violet'),
    'white': ('white',),
    'black': ('black',),
}
SIZES = {
    'small': ('small', 'little', 'tiny', 'smallest'),
    'medium': ('medium', 'middle', 'medium-sized', 'mid-sized'),
    'large': ('large', 'big', 'huge', 'largest', 'biggest'),
}
NOUNS = {
    'cube': ('cube', 'block', 'box', 'brick'),
    'ball': ('ball', 'sphere', 'orb'),
    'cylinder': ('cylinder', 'can', 'tin'),
    'bowl': ('bowl', 'basin'),
    'plate': ('plate', 'dish', 'saucer'),
    'drawer': ('drawer',),
    '': ('object', 'thing', 'item', 'one', 'piece', 'toy'),
}
GRASPABLE = ('cube', 'ball', 'cylinder')
CONTAINERS = ('bowl', 'plate', 'drawer')

# What each verb may turn out to mean once the relation is known.
_VERBS = {
    'lift': ('pick up', 'pick', 'lift up', 'lift', 'raise', 'grab', 'grasp', 'hold'),
    'take': ('take', 'fetch', 'get'),
    'put': ('put down', 'put', 'place', 'drop', 'set down', 'set', 'lay', 'deposit', 'transfer', 'release'),
    'move': ('move', 'bring', 'carry', 'shift', 'relocate'),
    'stack': ('stack', 'pile'),
    'open': ('open', 'pull open', 'pull out', 'slide open'),
    'close': ('close', 'shut', 'push shut', 'push closed', 'push in', 'slide shut'),
}
_RELATIONS = {
    'on': ('on top of', 'onto', 'on to', 'on', 'upon', 'atop'),
    'in': ('inside of', 'inside', 'into', 'in to', 'in', 'within'),
    'near': ('next to', 'close to', 'near to', 'near', 'beside', 'by', 'alongside'),
    'to': ('over to', 'to'),
}
_ARTICLES = ('the', 'a', 'an', 'that', 'this', 'your')
_POLITE = re.compile(
    r'^(?:(?:please|now|ok|okay|hey|hello|robot|franka|kindly|could you|can you|would you|will you|i want you to|'
    r"i would like you to|i'd like you to|you should|you must|go and|and|then|let's|try to|just)\s+)+"
)
_TAIL = re.compile(r'\s+(?:please|now|for me|thanks|thank you|carefully|gently|slowly)$')
_TABLE = re.compile(
    r'\s+(?:(?:up )?from|off(?: of)?|on|that is on|lying on|which is on)\s+(?:the|your)\s+(?:table|desk)\b'
)
_NEGATION = re.compile(r"\b(?:not|never|don't|dont|without|except|avoid)\b")

_TEMPLATES = {
    'pick': (
        'pick up {target}',
        'lift {target}',
        'grab {target}',
        'take {target}',
        'pick {target} up',
        'lift {target} off the table',
        'please pick up {target}',
    ),
    'put': (
        'put {target} {rel} {destination}',
        'place {target} {rel} {destination}',
        'move {target} {rel_to} {destination}',
        'drop {target} {rel_to} {destination}',
        'pick up {target} and put it {rel} {destination}',
        'take {target} and place it {rel} {destination}',
    ),
    'move_near': (
        'move {target} near {destination}',
        'put {target} next to {destination}',
        'place {target} close to {destination}',
        'bring {target} near {destination}',
        'set {target} down beside {destination}',
    ),
    'stack': (
        'stack {target} on {destination}',
        'put {target} on top of {destination}',
        'place {target} onto {destination}',
        'pile {target} on top of {destination}',
        'pick up {target} and stack it on {destination}',
    ),
    'open_drawer': (
        'open {destination}',
        'pull {destination} open',
        'pull open {destination}',
        'please open {destination}',
    ),
    'close_drawer': (
        'close {destination}',
        'shut {destination}',
        'push {destination} shut',
        'please close {destination}',
    ),
}
TASK_NAMES = tuple(_TEMPLATES)


@dataclass(frozen=True)
class Description:
    """Words for one object; an empty field was not said."""

    category: str = ''
    color: str = ''
    size: str = ''

    def __str__(self) -> str:
        return ' '.join(['the', *(w for w in (self.size, self.color, self.category or 'object') if w)])

    def matches(self, category: str, color: str, size: str) -> bool:
        """Whether an object of these properties fits every word that was said."""
        pairs = ((self.category, category), (self.color, color), (self.size, size))
        return all(not said or said == has for said, has in pairs)


@dataclass(frozen=True)
class Command:
    """What a sentence asks for.

    Attributes:
        task: one of :data:`TASK_NAMES`.
        target: the object to move; for drawers the drawer itself.
        destination: where it goes, or None.
        relation: 'in', 'on', 'near' or ''.
    """

    task: str
    target: Description
    destination: Description | None = None
    relation: str = ''


def sentences(command: Command) -> tuple[str, ...]:
    """Every plain sentence that says ``command``, lower case."""
    rel = command.relation
    target, destination = str(command.target), str(command.destination or command.target)
    rel_to = {'in': 'into', 'on': 'onto'}.get(rel, rel)
    return tuple(
        t.format(target=target, destination=destination, rel=rel, rel_to=rel_to) for t in _TEMPLATES[command.task]
    )


def render(command: Command, rng: np.random.Generator) -> str:
    """One of :func:`sentences`, chosen by ``rng``."""
    options = sentences(command)
    return options[int(rng.integers(len(options)))]


def parse(sentence: str) -> Command:
    """Meaning of a free sentence such as ``'Put the red cube in the bowl.'``.

    Raises:
        TaskError: no known verb, object or place; the message names what was not understood and what is.
    """
    text = re.sub(r"[^a-z0-9'\- ]+", ' ', sentence.lower().replace('’', "'"))
    text = re.sub(r'\s+', ' ', text).strip()
    if not text:
        raise TaskError(f'the instruction is empty. Say for example {_example()}')
    if _NEGATION.search(text):
        raise TaskError(f'{sentence!r} says what not to do; say what to do, for example {_example()}')
    text = _TAIL.sub('', _POLITE.sub('', text + ' ').strip())
    text = _TABLE.sub('', text)
    first, _, second = text.partition(' and ')
    if not second:
        first, _, second = text.partition(' then ')
    command = _clause(first, sentence, None)
    if not second:
        return _finish(command, sentence)
    second = _POLITE.sub('', second + ' ').strip()
    return _finish(_clause(second, sentence, command), sentence)


@dataclass(frozen=True)
class _Clause:
    verb: str
    target: Description | None
    relation: str
    destination: Description | None


def _clause(text: str, sentence: str, before: _Clause | None) -> _Clause:
    verb, rest = _verb(text, sentence)
    left, relation, right = _relation(rest)
    if before is not None and before.verb not in ('lift', 'take', 'move'):
        raise TaskError(f'{sentence!r} asks for two things; give one instruction at a time')
    left = re.sub(r'\b(?:up|down|back|away|over)\b', ' ', left).strip()
    if before is not None:
        if left not in ('it', 'that', 'this', ''):
            raise TaskError(f'{sentence!r} asks for two things; give one instruction at a time')
        target = before.target
    elif left in ('', 'it') and verb not in ('open', 'close'):
        raise TaskError(f'{sentence!r} does not say which object. Say for example {_example()}')
    else:
        target = _noun_phrase(left, sentence)
    destination = _noun_phrase(right, sentence) if relation else None
    return _Clause(verb, target, relation, destination)


def _verb(text: str, sentence: str) -> tuple[str, str]:
    # 'pull the drawer open' and 'push the drawer shut' carry the meaning in the last word.
    particle = re.match(r'^(?:pull|push|slide)\s+(.*?)\s+(open|out|shut|closed|in)$', text)
    if particle:
        return ('open' if particle[2] in ('open', 'out') else 'close'), particle[1]
    phrases = sorted(((p, verb) for verb, group in _VERBS.items() for p in group), key=lambda pv: -len(pv[0]))
    for phrase, verb in phrases:
        if text == phrase or text.startswith(phrase + ' '):
            return verb, text[len(phrase) :].strip()
    word = text.split(' ')[0] if text else ''
    known = {p for group in _VERBS.values() for p in group if ' ' not in p or p == 'pick up'}
    raise TaskError(f'no known verb at the start of {sentence!r} (found {word!r}).{suggest(word, known)}')


def _relation(text: str) -> tuple[str, str, str]:
    best: tuple[int, int, str] | None = None
    for relation, phrases in _RELATIONS.items():
        for phrase in phrases:
            found = re.search(rf'(?:^|\s){re.escape(phrase)}(?=\s|$)', text)
            # The earliest relation wins, and of two at the same place the longer one.
            if found and (best is None or (found.start(), -found.end()) < (best[0], -best[1])):
                best = (found.start(), found.end(), relation)
    if best is None:
        return text, '', ''
    return text[: best[0]].strip(), best[2], text[best[1] :].strip()


def _noun_phrase(text: str, sentence: str) -> Description:
    words = [w for w in text.split() if w not in _ARTICLES and w not in ('colored', 'coloured', 'of')]
    if not words:
        raise TaskError(f'{sentence!r}: an object is missing. Say for example {_example()}')
    out = Description()
    noun_seen = False
    unknown: list[str] = []
    for word in dict.fromkeys(words):
        color, size, noun = _lookup(COLORS, word), _lookup(SIZES, word), _lookup(NOUNS, word)
        if color is not None and not out.color:
            out = replace(out, color=color)
        elif size is not None and not out.size:
            out = replace(out, size=size)
        elif noun is not None and not noun_seen:
            out, noun_seen = replace(out, category=noun), True
        else:
            unknown.append(word)
    if unknown:
        word = unknown[0] if noun_seen else unknown[-1]
        kind = 'word' if noun_seen else 'object'
        valid = {*COLORS, *SIZES} if noun_seen else {n for n in NOUNS if n}
        raise TaskError(f'unknown {kind} {word!r} in {sentence!r}.{suggest(word, valid)}')
    if not noun_seen and not out.color:
        raise TaskError(f'{text!r} in {sentence!r} names no object.{suggest(text, (n for n in NOUNS if n))}')
    if not out.category and not (out.color or out.size):
        raise TaskError(f'{text!r} in {sentence!r} does not say which object; add a colour or a shape')
    return out


def _lookup(table: dict[str, tuple[str, ...]], word: str) -> str | None:
    return next((name for name, words in table.items() if word in words), None)


def _finish(clause: _Clause, sentence: str) -> Command:
    target, destination, relation = clause.target, clause.destination, clause.relation
    if clause.verb in ('open', 'close'):
        if target is None or target.category != 'drawer' or relation:
            raise TaskError(f'{sentence!r}: only the drawer can be opened or closed. Say "{clause.verb} the drawer"')
        return Command(f'{clause.verb}_drawer', target)
    if target is None:
        raise TaskError(f'{sentence!r} does not say which object. Say for example {_example()}')
    if target.category and target.category not in GRASPABLE:
        raise TaskError(f'the gripper cannot pick up a {target.category}.{suggest(target.category, GRASPABLE)}')
    if not relation:
        if clause.verb in ('lift', 'take'):
            return Command('pick', target)
        raise TaskError(f'{sentence!r} does not say where {target} goes. Say for example {_example()}')
    if clause.verb == 'lift':
        raise TaskError(
            f'{sentence!r}: objects are told apart by size, colour and shape, not by where they stand. '
            'To move one, say "put", "move" or "stack"'
        )
    if destination is None or not destination.category:
        raise TaskError(f'{sentence!r}: the place needs a name, for example "the bowl", "the plate", "the red cube"')
    if target == destination:
        raise TaskError(f'{sentence!r}: {target} cannot go {relation} itself; name two different objects')
    if relation == 'to':
        relation = 'on' if destination.category in CONTAINERS else 'near'
    if relation == 'near':
        if destination.category == 'drawer':
            raise TaskError(f'{sentence!r}: near the drawer is not a task.{suggest("", (*GRASPABLE, "bowl", "plate"))}')
        return Command('move_near', target, destination, 'near')
    if destination.category in CONTAINERS and clause.verb != 'stack':
        return Command('put', target, destination, 'on' if destination.category == 'plate' else 'in')
    if destination.category == 'cube' and target.category in ('cube', '') and relation == 'on':
        return Command('stack', replace(target, category='cube'), destination, 'on')
    raise TaskError(
        f'{sentence!r}: {target} cannot go {relation} {destination}. '
        'Objects go in a bowl or a drawer, on a plate, near another object; cubes also on cubes'
    )


def _example() -> str:
    return '"pick up the red cube" or "put the red cube in the bowl"'
