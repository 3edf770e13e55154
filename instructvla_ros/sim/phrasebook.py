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
                out += [(question.format(hint), color) for question in _OF_COLOR]
                out.append((f'name the colour of {hint}.', f'{hint} is {color}.'))
        out += [(f'what colour is {word}?', color) for color, words in book.colors.items() for word in words]
        out += [(f'what is a {word}?', f'a {noun}') for noun, words in book.nouns.items() for word in words]
        for noun in book.nouns:
            for use in book.use[noun]:
                out += [(f'which toy is {use}?', f'the {noun}'), (f'{use}: which toy is that?', f'the {noun}')]
        out += [(f'what place is meant by {where}?', f'the {noun}') for noun, w in book.where.items() for where in w]
        for lines, meaning in ((book.verb_pick, 'pick up'), (book.verb_put, 'put')):
            verbs = [found[1] for found in map(_BARE_VERB.match, lines) if found]
            out += [(f'what does {verb} mean?', meaning) for verb in verbs]
    return out


_OF_COLOR = ('what colour is {}?', 'which colour does {} have?', 'which colour do you see in {}?')
