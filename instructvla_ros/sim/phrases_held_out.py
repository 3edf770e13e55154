"""Words and patterns of instructions that training never sees; see :mod:`phrasebook`."""

from __future__ import annotations

from .book import Book

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
