"""What a small model is told about words: facts, commands, and instructions for scenes that are told in words."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from tokenizers import Tokenizer  # noqa: E402
from training_doubles import SMALL, dataset, options  # noqa: E402

from instructvla_ros.errors import DataError  # noqa: E402
from instructvla_ros.model.config import preset  # noqa: E402
from instructvla_ros.model.tokenizer import train_tokenizer  # noqa: E402
from instructvla_ros.sim.annotations import instructions  # noqa: E402
from instructvla_ros.sim.phrasebook import knowledge  # noqa: E402
from instructvla_ros.sim.tasks import make_episode  # noqa: E402
from instructvla_ros.training import setup  # noqa: E402
from instructvla_ros.training.corpus import Texts, Variant  # noqa: E402

LISTED = 'From left to right: red cube, blue bowl.'
DECIDED = 'I will pick up the red cube.'
CAPTION = 'i see a red cube and a blue bowl.'
FACTS = [('what is a brick?', 'a cube')]


@pytest.fixture
def made(tmp_path):
    (tmp_path / 'small.yaml').write_text(SMALL)
    return dataset(tmp_path / 'data'), str(tmp_path / 'small.yaml')


def spoken(run, texts, facts, count=400):
    """Dialogues without motion as plain text, and how many pictures they need."""
    examples = run.train[0]
    examples.corpus = [texts] * len(examples.store.texts)
    examples.facts = facts
    batch = examples.general(np.random.default_rng(4), count)
    tokenizer = run.bundle.prompts.tokenizer
    said = [tokenizer.decode(row, skip_special_tokens=True) for row in batch.ids]
    return said, 0 if batch.picture is None and batch.pixels is None else len(batch.pixels)


def test_instructions_come_with_the_scene_in_words(made, tmp_path):
    run = setup.prepare(options(made), tmp_path / 'out', progress=False)
    variant = Variant(
        0,
        -1,
        ['pick up the red cube', 'pick up the cube'],
        [['lift the one left of the bowl', f'{LISTED} {DECIDED}']],
        [['lift what a tomato is like', f'A tomato is red. {DECIDED}']],
    )
    texts = Texts([variant], [CAPTION], [['what is red?', 'the cube']])
    said, pictures = spoken(run, texts, FACTS)
    listed = [s for s in said if LISTED in s and 'left of the bowl' in s]
    hinted = [s for s in said if CAPTION in s and 'tomato is like' in s]
    assert len(listed) > 20 and len(hinted) > 20
    assert all(s.count(LISTED) == 2 for s in listed), 'told before the instruction, and said in the answer'
    assert all(s.index(CAPTION) < s.index('tomato is like') for s in hinted)
    assert sum('brick' in s for s in said) > 60
    assert 60 < pictures < 250, 'what needs no picture is given none'


def test_a_scene_without_words_is_not_told(made, tmp_path):
    run = setup.prepare(options(made), tmp_path / 'out', progress=False)
    only = Texts([Variant(-1, -1, ['pick up the red cube'])])
    said, pictures = spoken(run, only, FACTS)
    assert all('brick' in s for s in said) and not pictures
    with pytest.raises(DataError, match='general_batch'):
        spoken(run, only, [])


def test_facts_keep_their_share_of_a_tokenizer_however_large_the_data(made, tmp_path, monkeypatch):
    seen = {}

    def catch(texts, rows, folder):
        seen.update(texts=list(texts), rows=rows)
        raise InterruptedError

    many = [f'put the red cube in the bowl {k}' for k in range(500_000)]
    monkeypatch.setattr(setup, 'every_sentence', lambda corpus: many)
    monkeypatch.setattr(setup, 'train_tokenizer', catch)
    with pytest.raises(InterruptedError):
        setup.prepare(options(made), tmp_path / 'out', progress=False)
    facts = {part for pair in knowledge() for part in pair}
    length = Counter()
    for text in seen['texts']:
        length[text in facts] += len(text)
    assert length[True] > 0.3 * length[False]


def test_the_words_of_facts_are_whole_in_the_tiny_model(tmp_path):
    """A rare word in pieces is taken for another with the same pieces: 'cherry' for 'charcoal'."""
    rng = np.random.default_rng(0)
    scenes = [make_episode(('pick', 'put')[seed % 2], seed) for seed in range(40)]
    phrases = [p for e in scenes for f in ('aggregation', 'situated') for p in instructions(e, f, rng)]
    texts = [t for p in phrases for t in (p.text, p.response)]
    facts = [part for pair in knowledge() for part in pair]
    train_tokenizer(texts + facts * 20, preset('tiny').language.vocab_size, tmp_path / 't')
    tokenizer = Tokenizer.from_file(str(tmp_path / 't' / 'tokenizer.json'))
    words = {w for text in facts for w in re.findall(r' [a-z]+', text)}
    assert len(words) > 200
    assert [w for w in sorted(words) if len(tokenizer.encode(w).ids) > 1] == []
