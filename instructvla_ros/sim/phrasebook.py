"""Words and patterns of free instructions, in two books that share no pattern: one for training, one it never sees.

Colour words, the nouns of :mod:`language` and plain places ('in the bowl') are common ground. Everything else, every
frame, every pattern of a reference, every hint and synonym, is in one book only. A word of the held-out book that
training would not meet otherwise is explained by :func:`knowledge`, as a language model would know it beforehand:
what is held out is the instruction, not the language.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .book import Book
from .phrases_held_out import HELD_OUT
from .phrases_train import TRAIN
from .reasons import color_known, kind_known

_BARE_VERB = re.compile(r'^(\w+(?: up)?) \{t\}(?: \{w\})?$')

BOOKS: Mapping[str, Book] = {'train': TRAIN, 'held_out': HELD_OUT}


def knowledge() -> list[tuple[str, str]]:
    """Questions about words, with short answers: colours of things, synonyms and uses, of both books.

    They need no picture and contain no instruction. Training on them stands in for what a language model knows.
    """
    out: list[tuple[str, str]] = []
    for book in BOOKS.values():
        for color, hints in book.hints.items():
            for hint in hints:
                out += [(question.format(hint), color) for question in _COLOR_OF]
                out += [(question.format(hint), color_known(hint, color)) for question in _ABOUT]
        for color, words in book.colors.items():
            out += [(question.format(word), color) for word in words for question in _COLOR_MEANT]
        for noun, words in book.nouns.items():
            out += [(question.format(word), f'a {noun}') for word in words for question in _NOUN_MEANT]
        for noun in book.nouns:
            for use in book.use[noun]:
                out += [(f'which toy is {use}?', f'the {noun}'), (f'{use}: which toy is that?', f'the {noun}')]
                out.append((f'{use}, do you know it?', kind_known(noun)))
        for noun, places in book.where.items():
            out += [(question.format(where), f'the {noun}') for where in places for question in _PLACE_MEANT]
        for lines, meaning in ((book.verb_pick, 'pick up'), (book.verb_put, 'put')):
            verbs = [found[1] for found in map(_BARE_VERB.match, lines) if found]
            out += [(question.format(verb), meaning) for verb in verbs for question in _VERB_MEANT]
    return out


_COLOR_OF = (
    'what colour is {}?',
    'which color does {} have?',
    'which colour do you see in {}?',
    'yesterday i saw {}, which colour was it?',
    'is {} red or yellow or of another color?',
)
_ABOUT = (
    'name the colour of {}.',
    'what do you know about {}?',
    'tell me about {} and its color.',
    'the word is {}, say its colour.',
    'somebody has {} at home, which paint would be right for it?',
)
_COLOR_MEANT = ('what colour is {}?', 'what does {} mean?', 'somebody says {}, which color is meant?')
_NOUN_MEANT = ('what is a {}?', 'what does {} mean?', 'somebody says {}, what is meant?')
_PLACE_MEANT = ('what place is meant by {}?', '{}: which place is that?')
_VERB_MEANT = ('what does {} mean?', 'somebody says {}, what is to be done?')
