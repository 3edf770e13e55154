"""Which words point at one object of a scene: every rule says something true that fits no other object.

Left and right are those of the third-person picture of config/sim.yaml, whose camera faces the robot: the picture's
right is +y of the base frame, which is the robot's own left. Near and far are distances from the robot's base.
Comparisons hold with a margin, so that no rule hangs on a measurement: two places differ by :data:`STEP`, two sizes
by one word of :data:`scene.SIZES`. A destination that is a bowl, a plate or a drawer is never a candidate for the
object to be moved; all else on the table is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..datatypes import SceneObject
from ..geometry import look_at
from .book import Book, Lines
from .relations import gap, radius
from .scene import GRASPABLE, SIZES

STEP = 0.04
"""Smallest difference of position that words may rest on [m]."""
PICTURE_STEP = 0.03
"""The same in the picture, as a length at the distance of the table's middle [m]; far things look further inward."""
BESIDE, APART = 0.08, 0.13
"""Largest free space to what an object is beside, and smallest of the others that could be meant [m]."""
ROUND = ('ball', 'cylinder', 'bowl', 'plate')

_CAMERA = look_at((1.18, 0.0, 0.68), (0.42, 0.0, 0.13))
_DEPTH = float(np.linalg.norm(_CAMERA[:3, 3] - (0.54, 0.0, 0.02)))

Fits = Callable[[SceneObject], bool]


@dataclass(frozen=True)
class Reference:
    """Words for one object.

    Attributes:
        kind: the rule. pattern: the line of the book they were made from.
        hint: a thing of the object's colour that the words name, or ''.
        look: how one has to look at the scene to find the object: 'across' it, into its 'depth', or '' not at all.
    """

    text: str
    kind: str
    pattern: str
    hint: str = ''
    look: str = ''


def across(obj: SceneObject) -> float:
    """Where an object is in the third-person picture, as a length from the middle [m]; positive is right."""
    local = _CAMERA[:3, :3].T @ (obj.pose[:3, 3] - _CAMERA[:3, 3])
    return float(local[0] / local[2] * _DEPTH)


def side(obj: SceneObject, of: SceneObject) -> int:
    """-1 left of, 1 right of the other in the picture and on the table, 0 undecided.

    The centre of either must be past the edge of the other: in front of a plate is not beside it.
    """
    table, picture = float(obj.pose[1, 3] - of.pose[1, 3]), across(obj) - across(of)
    step = max(STEP, radius(obj), radius(of))
    if min(table / step, picture / PICTURE_STEP) >= 1.0:
        return 1
    return -1 if max(table / step, picture / PICTURE_STEP) <= -1.0 else 0


def farther(obj: SceneObject, than: SceneObject) -> int:
    """1 farther from the robot than the other, -1 nearer, 0 undecided, as always of a drawer, which has two ends."""
    if 'drawer' in (obj.category, than.category):
        return 0
    way = float(np.hypot(*obj.pose[:2, 3]) - np.hypot(*than.pose[:2, 3]))
    ahead = float(obj.pose[0, 3] - than.pose[0, 3])
    if way >= STEP and ahead > 0.0:
        return 1
    return -1 if way <= -STEP and ahead < 0.0 else 0


def bigger(obj: SceneObject, than: SceneObject) -> bool:
    """Whether a graspable object is at least one size word wider than another."""
    names = list(SIZES)
    return obj.size in names and than.size in names and names.index(obj.size) > names.index(than.size)


def beside(obj: SceneObject, mark: SceneObject, rest: Iterable[SceneObject]) -> bool:
    """Whether an object is next to ``mark`` and nothing of ``rest`` could be meant; never of a drawer."""
    free = 'drawer' not in (obj.category, mark.category)
    return free and gap(obj, mark) <= BESIDE and all(gap(o, mark) >= APART for o in rest)


def between(obj: SceneObject, a: SceneObject, b: SceneObject, width: float) -> bool:
    """Whether the centre is in the middle part of the line from ``a`` to ``b``, at most ``width`` beside it [m]."""
    line, way = b.pose[:2, 3] - a.pose[:2, 3], obj.pose[:2, 3] - a.pose[:2, 3]
    length = float(np.hypot(*line))
    along, beside = float(way @ line) / length, abs(float(way[0] * line[1] - way[1] * line[0])) / length
    return 0.2 * length <= along <= 0.8 * length and beside <= width


def description(obj: SceneObject, objects: Iterable[SceneObject], short: bool = False) -> str:
    """Words such as 'red cube' or 'small red cube' that fit only this object, or ''.

    Args:
        short: leave the colour out where the noun is enough.
    """
    twins = [o for o in objects if o.name != obj.name and o.category == obj.category]
    if not obj.color or (short and not twins):
        return '' if twins else obj.category
    twins = [o for o in twins if o.color == obj.color]
    if not twins:
        return f'{obj.color} {obj.category}'
    return '' if any(o.size == obj.size for o in twins) else f'{obj.size} {obj.color} {obj.category}'


@dataclass(frozen=True)
class View:
    """What a speaker looks at.

    Attributes:
        target: the object meant. others: everything else that could be meant. all: the whole scene.
    """

    target: SceneObject
    others: tuple[SceneObject, ...]
    all: tuple[SceneObject, ...]

    @classmethod
    def of(cls, objects: Mapping[str, SceneObject], target: str, destination: str) -> View:
        """View of a scene; a container that is the destination is no candidate, and neither is the drawer."""
        goal = objects.get(destination)
        skip = {target, 'drawer'}
        if goal is not None and goal.category not in GRASPABLE:
            skip.add(destination)
        others = tuple(o for o in objects.values() if o.name not in skip and o.category != 'drawer')
        return cls(objects[target], others, tuple(objects.values()))

    def only(self, fits: Fits) -> bool:
        """Whether the target fits and nothing else does."""
        return fits(self.target) and not any(fits(o) for o in self.others)


def _fill(lines: Lines, kind: str, look: str = '', **words: str) -> Iterator[Reference]:
    for line in lines:
        yield Reference(line.format(**words), kind, line, words.get('hint', ''), look)


def named(view: View) -> str:
    """The plain description of the target; colour and noun always, size where it is needed."""
    t = view.target
    twins = [o for o in view.all if o.name != t.name and o.category == t.category and o.color == t.color]
    size = t.size if twins else ''
    return ' '.join(w for w in (size, t.color, t.category) if w)


def referring(book: Book, view: View) -> list[Reference]:
    """References that name a colour, a noun, a place or what is not meant (instruction aggregation)."""
    rules = (_synonyms, _attributes, _sizes, _places, _relations, _negations)
    return [reference for rule in rules for reference in rule(book, view)]


def _synonyms(book: Book, view: View) -> Iterator[Reference]:
    t, plain = view.target, named(view)
    if not view.only(lambda o: (o.category, o.color) == (t.category, t.color)) and t.size not in plain:
        return
    for noun in book.nouns.get(t.category, ()):
        yield Reference('the ' + plain.replace(t.category, noun), 'synonym', noun)
    for word in book.colors.get(t.color, ()):
        yield Reference('the ' + plain.replace(t.color, word), 'synonym', word)


def _attributes(book: Book, view: View) -> Iterator[Reference]:
    t = view.target
    if view.only(lambda o: o.color == t.color):
        yield from _fill(book.one, 'attribute', color=t.color)
    for shape, of in (('round', ROUND), ('square', ('cube',)), ('can', ('cylinder',))):
        if view.only(lambda o, of=of: o.color == t.color and o.category in of):  # type: ignore[misc]
            yield from _fill(book.shapes[shape], 'attribute', color=t.color)
    if view.only(lambda o: o.category == t.category):
        yield from _fill(book.only, 'attribute', 'across', noun=t.category)


def _sizes(book: Book, view: View) -> Iterator[Reference]:
    t = view.target
    twins = [o for o in view.others if o.category == t.category]
    if len(twins) == 1 and bigger(t, twins[0]):
        yield from _fill(book.bigger, 'size', 'across', noun=t.category)
    if len(twins) == 1 and bigger(twins[0], t):
        yield from _fill(book.smaller, 'size', 'across', noun=t.category)


def _groups(view: View) -> Iterator[tuple[str, list[SceneObject]]]:
    """Head words with the other objects that they fit: the target's noun, and 'thing' for all that stands there."""
    yield view.target.category, [o for o in view.others if o.category == view.target.category]
    yield 'thing', [o for o in view.all if o.name != view.target.name]


def _places(book: Book, view: View) -> Iterator[Reference]:
    t = view.target
    for noun, others in _groups(view):
        if not others:
            continue
        sides = [side(t, o) for o in others]
        depths = [farther(t, o) for o in others]
        for values, look, low, high in ((sides, 'across', 'left', 'right'), (depths, 'depth', 'near', 'far')):
            for end, sign in ((low, -1), (high, 1)):
                if all(v == sign for v in values):
                    yield from _fill(book.ends[end], 'relation', look, noun=noun)
        if sorted(sides) == [-1, 1]:
            yield from _fill(book.middle, 'relation', 'across', noun=noun)


def _relations(book: Book, view: View) -> Iterator[Reference]:
    t = view.target
    for noun, others in _groups(view):
        marks = [(o, description(o, view.all, short=True)) for o in view.all if o.name != t.name]
        marks = [(o, words) for o, words in marks if words]
        for mark, words in marks:
            rest = [o for o in others if o.name != mark.name]
            for name, sign in (('left', -1), ('right', 1)):
                if side(t, mark) == sign and all(side(o, mark) == -sign for o in rest):
                    yield from _fill(book.side[name], 'relation', 'across', noun=noun, a=f'the {words}')
            if beside(t, mark, rest):
                yield from _fill(book.beside, 'relation', 'across', noun=noun, a=f'the {words}')
        marks = [(o, words) for o, words in marks if o.category != 'drawer']
        for i, (a, first) in enumerate(marks):
            for b, second in marks[i + 1 :]:
                rest = [o for o in others if o.name not in (a.name, b.name)]
                if between(t, a, b, 0.05) and not any(between(o, a, b, 0.12) for o in rest):
                    yield from _fill(book.between, 'relation', 'across', noun=noun, a=f'the {first}', b=f'the {second}')


def _negations(book: Book, view: View) -> Iterator[Reference]:
    t = view.target
    twins = [o for o in view.others if o.category == t.category]
    if len(twins) == 1 and twins[0].color != t.color:
        yield from _fill(book.not_color, 'negation', 'across', noun=t.category, other=twins[0].color)
    twins = [o for o in view.others if o.color == t.color]
    if len(twins) == 1 and twins[0].category != t.category:
        yield from _fill(book.not_noun, 'negation', 'across', color=t.color, other=twins[0].category)
    if len(view.others) == 2:
        first, second = (description(o, view.all) for o in view.others)
        if first and second:
            yield from _fill(book.neither, 'negation', 'across', a=f'the {first}', b=f'the {second}')


def describing(book: Book, view: View, rng: np.random.Generator) -> list[Reference]:
    """References that never name the target's colour, and its noun only where a hint alone would not do (situated)."""
    rules = (_odd, _extremes, _uses)
    out = [reference for rule in rules for reference in rule(book, view)]
    return [*out, *_hints(book, view, rng)]


def hint_for(book: Book, view: View, rng: np.random.Generator) -> str:
    """A thing of the target's colour, or '' when another object has that colour too."""
    t = view.target
    return str(rng.choice(book.hints[t.color])) if view.only(lambda o: o.color == t.color) else ''


def _hints(book: Book, view: View, rng: np.random.Generator) -> Iterator[Reference]:
    t = view.target
    twins = [o for o in view.others if o.color == t.color]

    def fill(lines: Lines, kind: str, look: str = '') -> Iterator[Reference]:
        for line in lines:
            yield from _fill((line,), kind, look, hint=str(rng.choice(book.hints[t.color])), noun=t.category)

    if not twins:
        yield from fill(book.by_hint, 'color_hint')
        return
    if not any(o.category == t.category for o in twins):
        yield from fill(book.noun_by_hint, 'noun_hint')
    if all(bigger(t, o) for o in twins):
        yield from fill(book.bigger_by_hint, 'size_hint', 'across')
    if all(bigger(o, t) for o in twins):
        yield from fill(book.smaller_by_hint, 'size_hint', 'across')


def _odd(book: Book, view: View) -> Iterator[Reference]:
    things = (view.target, *view.others)
    if len(things) < 3:
        return
    odd = set()
    for feature in (lambda o: o.color, lambda o: o.category, lambda o: o.size):
        for thing in things:
            rest = {feature(o) for o in things if o is not thing}
            if len(rest) == 1 and feature(thing) not in rest:
                odd.add(thing.name)
    if odd == {view.target.name} and _stands_out(view.target, view.others):
        yield from _fill(book.odd, 'odd_one_out', 'across')


def _stands_out(obj: SceneObject, others: Iterable[SceneObject]) -> bool:
    """Whether colour or category, not size alone, sets an object apart from others that share it."""
    rest = list(others)
    colors, categories = {o.color for o in rest}, {o.category for o in rest}
    return (len(colors) == 1 and obj.color not in colors) or (len(categories) == 1 and obj.category not in categories)


def _extremes(book: Book, view: View) -> Iterator[Reference]:
    t = view.target
    if len(view.others) < 2:
        return
    if all(bigger(t, o) for o in view.others):
        yield from _fill(book.largest, 'largest', 'across')
    if all(bigger(o, t) or o.category not in GRASPABLE for o in view.others):
        yield from _fill(book.smallest, 'smallest', 'across')


def _uses(book: Book, view: View) -> Iterator[Reference]:
    t = view.target
    for use, of in ((t.category, (t.category,)), ('roll', ('ball', 'cylinder')), ('tower', ('cube', 'cylinder'))):
        if view.only(lambda o, of=of: o.category in of):  # type: ignore[misc]
            yield from _fill(book.use[use], 'use')
