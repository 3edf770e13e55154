"""Captions of a scene and questions about it, with short answers. Left, right, near and far as in :mod:`references`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ..datatypes import SceneObject
from .references import across, beside, bigger, description, farther, side
from .scene import CATEGORIES, COLORS, GRASPABLE

NUMBERS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten')
MIDDLE, OUTSIDE = 0.04, 0.10
"""In the middle is within the first of the picture's centre line, left and right is beyond the second [m]."""
NEAR, FAR = 0.50, 0.58
"""Distance from the robot's base below which a thing is near, and above which it is far [m]."""

_OPENINGS = ('from left to right there are {}', 'i see {}', 'on the table there are {}', 'the table shows {}')


def caption(scene_objects: Iterable[SceneObject] | Mapping[str, SceneObject], rng: np.random.Generator) -> str:
    """What stands on the table from left to right in the third-person picture; the robot is left out."""
    objects = sorted(_listed(scene_objects), key=across)
    if not objects:
        return 'the table is empty.'
    words = [_phrase(o) for o in objects]
    if len(words) == 1:
        return f'on the table there is {words[0]}.'
    listed = ', '.join(words[:-1]) + f' and {words[-1]}'
    return _OPENINGS[int(rng.integers(len(_OPENINGS)))].format(listed) + '.'


def questions(
    scene_objects: Iterable[SceneObject] | Mapping[str, SceneObject], rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Everything that can be asked about the scene with one right answer; ``rng`` draws what is not there."""
    objects = _listed(scene_objects)
    named = [(o, description(o, objects)) for o in objects]
    named = [(o, words) for o, words in named if words]
    out = _counts(objects, rng) + _properties(objects)
    for o, words in named:
        out += _where(o, words)
    out += _neighbours(objects, named, rng) + _compared(named, rng)
    return list(dict.fromkeys(out + _superlatives(objects)))


def _listed(scene_objects: Iterable[SceneObject] | Mapping[str, SceneObject]) -> list[SceneObject]:
    return list(scene_objects.values() if isinstance(scene_objects, Mapping) else scene_objects)


def _phrase(obj: SceneObject) -> str:
    words = ' '.join(w for w in (obj.size if obj.size != 'medium' else '', obj.color, obj.category) if w)
    return _a(words)


def _a(words: str) -> str:
    return f'{"an" if words[0] in "aeiou" else "a"} {words}'


def _counts(objects: list[SceneObject], rng: np.random.Generator) -> list[tuple[str, str]]:
    out = []
    for noun in CATEGORIES[:-1]:
        count = sum(o.category == noun for o in objects)
        if count or rng.random() < 0.3:
            out.append((f'how many {noun}s are there?', NUMBERS[count] if count < len(NUMBERS) else str(count)))
        if count > 1:
            same = len({o.color for o in objects if o.category == noun}) == 1
            out.append((f'do all {noun}s have the same colour?', 'yes' if same else 'no'))
    there = {(o.color, o.category) for o in objects}
    for color, noun in sorted(pair for pair in there if pair[0]):
        out.append((f'is there {_a(color)} {noun}?', 'yes'))
        # A wrong colour of a noun that is there, and a wrong noun of a colour that is there.
        other = str(rng.choice([c for c in COLORS if (c, noun) not in there]))
        out.append((f'is there {_a(other)} {noun}?', 'no'))
        wrong = [n for n in CATEGORIES[:-1] if (color, n) not in there]
        if wrong:
            out.append((f'is there {_a(color)} {rng.choice(wrong)}?', 'no'))
    return out


def _properties(objects: list[SceneObject]) -> list[tuple[str, str]]:
    out = []
    for o in objects:
        if not o.color:
            continue
        if sum(p.category == o.category for p in objects) == 1:
            out.append((f'what colour is the {o.category}?', o.color))
        if sum(p.color == o.color for p in objects) == 1:
            out.append((f'what is {o.color}?', f'the {o.category}'))
    return out


def _where(obj: SceneObject, words: str) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    if obj.category == 'drawer':
        return out
    at, way = across(obj), float(np.hypot(*obj.pose[:2, 3]))
    if abs(at) <= MIDDLE:
        out.append((f'where is the {words}?', 'in the middle'))
    elif abs(at) >= OUTSIDE:
        out.append((f'where is the {words}?', 'on the right' if at > 0 else 'on the left'))
    if way <= NEAR or way >= FAR:
        out.append((f'is the {words} near the robot or far from it?', 'near' if way <= NEAR else 'far'))
    return out


def _neighbours(
    objects: list[SceneObject], named: list[tuple[SceneObject, str]], rng: np.random.Generator
) -> list[tuple[str, str]]:
    out = []
    for o, words in named:
        for other, answer in named:
            if other is o:
                continue
            rest = [p for p in objects if p is not o and p is not other]
            if beside(other, o, rest):
                asked = ('what is next to', 'what stands beside')[int(rng.integers(2))]
                out.append((f'{asked} the {words}?', f'the {answer}'))
            for sign, name in ((-1, 'left'), (1, 'right')):
                if side(other, o) == sign and all(side(p, o) == -sign for p in rest):
                    out.append((f'what is {name} of the {words}?', f'the {answer}'))
    return out


def _compared(named: list[tuple[SceneObject, str]], rng: np.random.Generator) -> list[tuple[str, str]]:
    out = []
    for o, words in named:
        for other, others in named:
            if bigger(o, other):
                pair = [(words, others, 'yes'), (others, words, 'no')][int(rng.integers(2))]
                out.append((f'is the {pair[0]} larger than the {pair[1]}?', pair[2]))
    return out


def _superlatives(objects: list[SceneObject]) -> list[tuple[str, str]]:
    out = []
    toys = [o for o in objects if o.category in GRASPABLE]
    for o in objects:
        words, rest = description(o, objects), [p for p in objects if p is not o]
        if not words or not rest:
            continue
        for name, sign in (('left', -1), ('right', 1)):
            if all(side(o, p) == sign for p in rest):
                out.append((f'what is farthest to the {name}?', f'the {words}'))
        if all(farther(o, p) == -1 for p in rest):
            out.append(('what is closest to the robot?', f'the {words}'))
        if o in toys and len(toys) > 1 and all(bigger(o, p) for p in toys if p is not o):
            out.append(('which toy is the largest?', f'the {words}'))
        if o in toys and len(toys) > 1 and all(bigger(p, o) for p in toys if p is not o):
            out.append(('which toy is the smallest?', f'the {words}'))
    return out
