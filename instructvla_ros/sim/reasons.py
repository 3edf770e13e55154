"""What the robot says before it decides: what it knows, and what it sees where looking decides.

The answer to "pick up the cube left of the bowl" is found by looking along the table, and a small model finds it when
it first says what stands there; "something the colour of grass" needs a fact and no list. What is said comes before
the decision, so that the decision can rest on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from ..datatypes import SceneObject
from .references import Reference, View, across

ORDERS = {'across': 'From left to right: {}.', 'depth': 'From near to far: {}.'}
_LISTED = re.compile('|'.join(re.escape(order).replace(r'\{\}', '[^.]*') for order in ORDERS.values()))


def reason(reference: Reference, view: View) -> str:
    """Sentences that lead to the target, '' where its words are enough, such as 'Grass is green.'."""
    said = []
    if reference.hint:
        said.append(color_known(reference.hint, view.target.color))
    if reference.kind == 'use':
        said.append(kind_known(view.target.category))
    if reference.look:
        said.append(ORDERS[reference.look].format(listing(view.all, reference.look)))
    return ' '.join(said)


def color_known(hint: str, color: str) -> str:
    """What is known of a thing, such as 'Grass is green.'."""
    return f'{hint[0].upper()}{hint[1:]} is {color}.'


def kind_known(noun: str) -> str:
    """What a use tells, such as 'That is a ball.'."""
    return f'That is a {noun}.'


def listed(sentence: str) -> str:
    """The list of what stands there in what the robot says, '' without one."""
    found = _LISTED.search(sentence)
    return found[0] if found else ''


def listing(objects: Iterable[SceneObject], look: str) -> str:
    """All objects in the order of a look, such as 'small red cube, blue ball, green bowl'."""

    def place(obj: SceneObject) -> float:
        return across(obj) if look == 'across' else float(np.hypot(*obj.pose[:2, 3]))

    return ', '.join(_words(o) for o in sorted(objects, key=place))


def decision(sentence: str) -> str:
    """The last sentence: what the robot is going to do."""
    return sentence.rstrip(' .').rpartition('. ')[2]


def _words(obj: SceneObject) -> str:
    return ' '.join(w for w in (obj.size if obj.size != 'medium' else '', obj.color, obj.category) if w)
