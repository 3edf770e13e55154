"""What a phrasebook is: lines with slots, and lines with alternatives that stand for many.

Slots: {t} reference to the object, {w} where it goes, {noun} {color} {size} words of the object, {hint} a thing of
its colour, {a} {b} other objects. Alternatives: ``lift [up |]{t}`` stands for 'lift up {t}' and 'lift {t}'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

Lines = tuple[str, ...]
MANY, FEW = 5, 3
"""A group of more lines than the first is used in so many of them at a time, see :func:`thinned`."""
_CHOICE = re.compile(r'\[([^\[\]]*)\]')


@dataclass(frozen=True)
class Book:
    """One split. Keys of mappings are colours, categories, sides or ends, values their wordings."""

    pick: Lines
    put: Lines
    polite_pick: Lines
    polite_put: Lines
    verb_pick: Lines
    verb_put: Lines
    drawer: Mapping[str, Lines]
    near: Lines
    stack: Lines
    nouns: Mapping[str, Lines]
    colors: Mapping[str, Lines]
    shapes: Mapping[str, Lines]
    one: Lines
    only: Lines
    bigger: Lines
    smaller: Lines
    ends: Mapping[str, Lines]
    side: Mapping[str, Lines]
    beside: Lines
    between: Lines
    middle: Lines
    not_color: Lines
    not_noun: Lines
    neither: Lines
    hints: Mapping[str, Lines]
    by_hint: Lines
    noun_by_hint: Lines
    bigger_by_hint: Lines
    smaller_by_hint: Lines
    hint_pick: Lines
    hint_put: Lines
    odd: Lines
    largest: Lines
    smallest: Lines
    use: Mapping[str, Lines]
    want_pick: Lines
    want_put: Lines
    where: Mapping[str, Lines]


def lines(*patterns: str) -> Lines:
    """Every line that patterns with ``[this|that]`` stand for, in order and once each."""
    return tuple(dict.fromkeys(line for pattern in patterns for line in _expand(pattern)))


def thinned(book: Book, rng: np.random.Generator) -> Book:
    """The book for one scene: :data:`FEW` lines drawn from every group of more than :data:`MANY`.

    Over many scenes all lines are used, and a rule with many wordings does not crowd out the others.
    """

    def draw(group: Lines) -> Lines:
        return group if len(group) <= MANY else tuple(group[int(k)] for k in rng.choice(len(group), FEW, replace=False))

    chosen: dict[str, Any] = {
        name: {key: draw(group) for key, group in value.items()} if isinstance(value, Mapping) else draw(value)
        for name, value in vars(book).items()
    }
    return Book(**chosen)


def _expand(pattern: str) -> list[str]:
    parts = _CHOICE.split(pattern)  # text and choices in turn
    choices = [part.split('|') if k % 2 else [part] for k, part in enumerate(parts)]
    return [' '.join(''.join(chosen).split()).replace(' ,', ',') for chosen in product(*choices)]
