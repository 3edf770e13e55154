"""Words and patterns of free instructions, in two books that share no pattern: one for training, one it never sees.

Colour words, the nouns of :mod:`language` and plain places ('in the bowl') are common ground. Everything else, every
frame, every pattern of a reference, every hint and synonym, is in one book only. A word of the held-out book that
training would not meet otherwise is explained by :func:`knowledge`, as a language model would know it beforehand:
what is held out is the instruction, not the language.

Patterns: {t} reference to the object, {w} where it goes, {noun} {color} {size} words of the object, {hint} a thing of
its colour, {a} {b} other objects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Lines = tuple[str, ...]
_BARE_VERB = re.compile(r'^(\w+(?: up)?) \{t\}(?: \{w\})?$')


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


TRAIN = Book(
    pick=(
        'pick up {t}',
        'lift {t}',
        'grab {t}',
        'take {t}',
        'raise {t} from the table',
        'get hold of {t}',
        'grasp {t} and lift it',
        'fetch {t} for me',
    ),
    put=(
        'put {t} {w}',
        'place {t} {w}',
        'take {t} and leave it {w}',
        'grab {t} and set it down {w}',
        'drop {t} {w}',
        'i would like {t} to be {w}',
        'pick up {t} and put it {w}',
    ),
    polite_pick=(
        'could you please pick up {t}',
        'i would like you to lift {t}',
        'can you get {t} for me',
        'be so kind and grab {t}',
        'if you can, you should lift {t}',
    ),
    polite_put=(
        'could you please put {t} {w}',
        'i would like you to place {t} {w}',
        'can you move {t} so that it is {w}',
        'be so kind and set {t} down {w}',
        'if you can, you should put {t} {w}',
    ),
    verb_pick=('hoist {t}', 'snatch {t}', 'bring {t} up into the air', 'let {t} leave the table'),
    verb_put=(
        'deposit {t} {w}',
        'transfer {t} so that it ends up {w}',
        'let {t} land {w}',
        'carry {t} and release it {w}',
    ),
    drawer={
        'open': ('could you please open the drawer', 'slide the drawer open', 'pull the drawer out for me'),
        'close': ('could you please close the drawer', 'slide the drawer shut', 'push the drawer in for me'),
    },
    near=('near {b}', 'next to {b}', 'close to {b}'),
    stack=('on {b}', 'on top of {b}'),
    nouns={'cube': ('block', 'box'), 'ball': ('sphere',), 'cylinder': ('can',)},
    colors={'red': ('crimson',), 'purple': ('violet',)},
    shapes={
        'round': ('the round {color} thing', 'the {color} thing without corners'),
        'square': ('the square {color} thing', 'the {color} thing with corners'),
        'can': ('the {color} thing shaped like a can',),
    },
    one=('the {color} one', 'the {color} thing'),
    only=('the only {noun}',),
    bigger=('the bigger {noun}', 'the larger of the two {noun}s'),
    smaller=('the smaller {noun}', 'the smaller of the two {noun}s'),
    ends={
        'left': ('the leftmost {noun}', 'the {noun} that is farthest to the left'),
        'right': ('the rightmost {noun}', 'the {noun} that is farthest to the right'),
        'near': ('the {noun} that is closest to the robot', 'the {noun} nearest to the robot arm'),
        'far': ('the {noun} that is farthest from the robot', 'the {noun} farthest from the robot arm'),
    },
    side={
        'left': ('the {noun} that is left of {a}', 'the {noun} on the left side of {a}'),
        'right': ('the {noun} that is right of {a}', 'the {noun} on the right side of {a}'),
    },
    beside=('the {noun} that is next to {a}', 'the {noun} close to {a}'),
    between=('the {noun} between {a} and {b}',),
    middle=('the {noun} in the middle', 'the middle {noun}'),
    not_color=(
        'the {noun} that is not {other}',
        'the other {noun}, not the {other} one,',
        'any {noun} but the {other} one',
    ),
    not_noun=('the {color} thing that is not a {other}', 'the other {color} thing, not the {other},'),
    neither=('the one that is neither {a} nor {b}', 'the last one, not {a} and not {b},'),
    hints={
        'red': ('a tomato', 'a strawberry', 'a fire engine'),
        'green': ('grass', 'a frog', 'a cucumber'),
        'blue': ('the sky', 'the sea', 'a whale'),
        'yellow': ('a banana', 'a lemon', 'the sun'),
        'orange': ('a carrot', 'a fox', 'a tangerine'),
        'purple': ('a plum', 'lavender', 'grape juice'),
        'white': ('snow', 'milk', 'a cloud'),
        'black': ('coal', 'the night', 'a raven'),
    },
    by_hint=(
        'something the colour of {hint}',
        'the thing with the same colour as {hint}',
        'the one whose colour reminds me of {hint}',
        'the one that is as colourful as {hint}',
    ),
    noun_by_hint=(
        'a {noun} the colour of {hint}',
        'the {noun} with the same colour as {hint}',
        'the {noun} that reminds me of {hint}',
    ),
    bigger_by_hint=('the bigger of the things the colour of {hint}',),
    smaller_by_hint=('the smaller of the things the colour of {hint}',),
    hint_pick=(
        'i am thinking of {hint}, give me what has that colour',
        'i am painting {hint}, hand me what matches',
    ),
    hint_put=(
        'i am thinking of {hint}, put what has that colour {w}',
        'i am painting {hint}, what matches goes {w}',
    ),
    odd=('the one that is not like the others', 'the odd one out', 'what looks different from the rest'),
    largest=('the largest of them', 'the biggest one', 'the one that needs the most room'),
    smallest=('the smallest of them', 'the tiniest one', 'the one that needs the least room'),
    use={
        'ball': ('something to play catch with', 'something i can bounce', 'something a dog would chase'),
        'cube': (
            'something shaped like a lump of sugar',
            'something i can use as dice',
            'something with six equal sides',
        ),
        'cylinder': (
            'something shaped like a candle',
            'something that looks like a drum',
            'something shaped like a jar',
        ),
        'roll': ('something to roll',),
        'tower': ('something to build a tower with',),
    },
    want_pick=('i want {t}', 'give me {t}', 'find {t} and lift it', 'i need {t}'),
    want_put=('i want {t} {w}', 'find {t} and put it {w}', '{t} goes {w}', 'i need {t} {w}'),
    where={
        'bowl': ('where soup would go', 'where i eat my cereal from', 'in what can hold water'),
        'plate': ('where a slice of cake would go', 'where a pizza is served', 'on what is flat and round'),
        'drawer': ('where things are out of sight', 'in what slides open and shut'),
    },
)

HELD_OUT = Book(
    pick=(
        'get {t} and hold it up',
        '{t} is what i want you to pick up',
        'go to {t} and raise it',
        'let me see you lift {t}',
        'take hold of {t} and bring it up',
    ),
    put=(
        '{t} should be {w}',
        'get {t} and place it {w}',
        'lift {t} and let it go {w}',
        'leave {t} {w}',
        'bring {t} and drop it {w}',
    ),
    polite_pick=(
        'would you please be so kind and take {t}',
        'please go and get {t} for me',
        'it would be so kind if you could raise {t}',
    ),
    polite_put=(
        'would you please be so kind and leave {t} {w}',
        'please go and put {t} {w} for me',
        'it would be so kind if {t} could be {w}',
    ),
    verb_pick=('seize {t}', 'elevate {t}', 'scoop up {t}'),
    verb_put=('stow {t} {w}', 'park {t} {w}', 'dump {t} {w}'),
    drawer={
        'open': ('would you please be so kind and open the drawer', 'let the drawer slide open', 'get the drawer open'),
        'close': (
            'would you please be so kind and close the drawer',
            'let the drawer slide shut',
            'get the drawer shut',
        ),
    },
    near=('beside {b}', 'to where {b} is'),
    stack=('upon {b}', 'atop {b}'),
    nouns={'cube': ('brick',), 'ball': ('orb',), 'cylinder': ('tin',)},
    colors={'red': ('scarlet',), 'blue': ('navy',)},
    shapes={
        'round': ('the {color} thing that is round',),
        'square': ('the {color} thing that is square', 'what is {color} and has corners'),
        'can': ('the {color} thing that looks like a can',),
    },
    one=('the thing that is {color}', 'what is {color}'),
    only=('the {noun}, there is only one,',),
    bigger=('the {noun} that is larger than the other one',),
    smaller=('the {noun} that is smaller than the other one',),
    ends={
        'left': ('the {noun} on the far left', 'the {noun} with no thing to the left of it'),
        'right': ('the {noun} on the far right', 'the {noun} with no thing to the right of it'),
        'near': ('the {noun} nearest to you', 'the {noun} that you are closest to'),
        'far': ('the {noun} farthest from you', 'the {noun} that you are farthest from'),
    },
    side={
        'left': ('the {noun} that you see to the left of {a}',),
        'right': ('the {noun} that you see to the right of {a}',),
    },
    beside=('the {noun} right beside {a}', 'the {noun} that stands by {a}'),
    between=('the {noun} that stands between {a} and {b}', 'the {noun} with {a} on one side and {b} on the other'),
    middle=('the {noun} that has one on the left and one on the right',),
    not_color=('the {noun}, but not the {other} one,', 'the {noun} of a colour other than {other}'),
    not_noun=('the {color} one, but not the {other},', 'what is {color} and not a {other}'),
    neither=('what is left without {a} and {b}', 'the thing other than {a} and {b}'),
    hints={
        'red': ('a cherry',),
        'green': ('a leaf',),
        'blue': ('a pair of jeans',),
        'yellow': ('an egg yolk',),
        'orange': ('a pumpkin',),
        'purple': ('an eggplant',),
        'white': ('a swan',),
        'black': ('tar',),
    },
    by_hint=(
        'the thing that matches {hint} in colour',
        'what has the colour that you see in {hint}',
        'something that looks like {hint} in colour',
    ),
    noun_by_hint=('the {noun} that matches {hint} in colour', 'the {noun} that looks like {hint} in colour'),
    bigger_by_hint=('the larger one of what looks like {hint} in colour',),
    smaller_by_hint=('the smaller one of what looks like {hint} in colour',),
    hint_pick=(
        'my game needs the colour of {hint}, lift what has it',
        '{hint} is what i am thinking of, hand me a thing of that colour',
    ),
    hint_put=(
        'my game needs the colour of {hint}, what has it should be {w}',
        '{hint} is what i am thinking of, leave a thing of that colour {w}',
    ),
    odd=('the thing that is not the same as all the others', 'the one that has no other like it'),
    largest=('the one that is bigger than all the others', 'what is larger than the rest'),
    smallest=('the one that is smaller than all the others', 'what is smaller than the rest'),
    use={
        'ball': ('what you would kick to score a goal', 'something a child would throw and catch'),
        'cube': ('what looks like an ice cube from the freezer', 'what you would throw in a board game'),
        'cylinder': ('what looks like a pillar', 'what looks like a barrel'),
        'roll': ('what would roll if you let it go',),
        'tower': ('what you can build a tower from',),
    },
    want_pick=('hand me {t}', 'find me {t}', 'can i have {t}', 'let me see {t} up in the air'),
    want_put=(
        '{t} is what i want {w}',
        'i would have {t} {w}',
        'see that {t} ends up {w}',
        'go and find {t} and leave it {w}',
    ),
    where={
        'bowl': ('where a salad is mixed', 'in what you would fill with soup'),
        'plate': ('where you would serve a sandwich', 'on what holds the cake at a party'),
        'drawer': ('where socks are kept', 'in what can be pulled open'),
    },
)

BOOKS: Mapping[str, Book] = {'train': TRAIN, 'held_out': HELD_OUT}


def knowledge() -> list[tuple[str, str]]:
    """Questions about words, with short answers: colours of things, synonyms and uses, of both books.

    They need no picture and contain no instruction. Training on them stands in for what a language model knows.
    """
    out: list[tuple[str, str]] = []
    for book in BOOKS.values():
        out += [(f'what colour is {hint}?', color) for color, hints in book.hints.items() for hint in hints]
        out += [(f'what colour is {word}?', color) for color, words in book.colors.items() for word in words]
        out += [(f'what is a {word}?', f'a {noun}') for noun, words in book.nouns.items() for word in words]
        out += [(f'which toy is {use}?', f'the {noun}') for noun in book.nouns for use in book.use[noun]]
        out += [(f'what place is meant by {where}?', f'the {noun}') for noun, w in book.where.items() for where in w]
        for lines, meaning in ((book.verb_pick, 'pick up'), (book.verb_put, 'put')):
            verbs = [found[1] for found in map(_BARE_VERB.match, lines) if found]
            out += [(f'what does {verb} mean?', meaning) for verb in verbs]
    return out
