"""Language: metrics against examples by hand, intervals, the questions of VLA-IT, and the command from end to end."""

from __future__ import annotations

import json
import math

import model_doubles as doubles
import numpy as np
import pytest
from PIL import Image

doubles.needs_model()
pytest.importorskip('sacrebleu', reason='the metrics need sacrebleu (pip install .[language])')
pytest.importorskip('nltk', reason='the metrics need nltk (pip install .[language])')

from instructvla_ros import cli  # noqa: E402
from instructvla_ros.data.conversations import Conversations  # noqa: E402
from instructvla_ros.data.prompts import CAPTION_REQUESTS  # noqa: E402
from instructvla_ros.errors import CheckpointError, ConfigError, DataError, SetupError  # noqa: E402
from instructvla_ros.evaluation import language, language_report  # noqa: E402
from instructvla_ros.evaluation.language_metrics import (  # noqa: E402
    Bleu,
    CiderD,
    Figure,
    Meteor,
    Similarity,
    figure,
    need,
    relative_change,
    words,
)

CAT, MAT = 'the cat sat on the mat', 'the cat is on the mat'


def single(metric, answer, reference):
    return metric.combine(metric.measure([answer], [reference]))


# -- metrics ----------------------------------------------------------------------------------------------------


def test_words():
    assert words("The robot's arm, LEFT of_a 7up-can.") == ['the', "robot's", 'arm', 'left', 'of', 'a', '7up', 'can']
    assert words('Ça va\N{RIGHT SINGLE QUOTATION MARK}s') == ['ça', "va's"] and words(' ... ') == []


def test_bleu_by_hand():
    """CAT against MAT: five of six words, three of five pairs (the cat, on the, the mat), one of four triples, no
    quadruple. BLEU-1 = 5/6, no brevity penalty. BLEU-4 is 0 without smoothing.
    """
    assert single(Bleu(1), CAT, MAT) == pytest.approx(100 * 5 / 6)
    assert single(Bleu(4), CAT, MAT) == 0.0
    assert single(Bleu(2), CAT, MAT) == pytest.approx(100 * math.sqrt(5 / 6 * 3 / 5))
    # Two of two words right, reference of four: brevity penalty exp(1 - 4/2).
    assert single(Bleu(1), 'red bowl', 'a red bowl there') == pytest.approx(100 * math.exp(-1))


def test_corpus_bleu_sums_before_it_divides():
    """One right word of one and one of three: 2/4 over the corpus, not the mean of 1 and 1/3."""
    metric = Bleu(1)
    rows = metric.measure(['yes', 'a red ball'], ['yes', 'the red cube'])
    assert metric.combine(rows) == pytest.approx(50.0)
    assert single(metric, '', 'something') == 0.0


def test_meteor_by_hand():
    """CAT against MAT: five matches, precision and recall 5/6, so F = 5/6; two runs (the cat, on the mat), so the
    penalty is 0.5 (2/5)^3 = 0.032 and the score 5/6 * 0.968. Stems match: 'bowls' and 'bowl'.
    """
    assert single(Meteor(), CAT, MAT) == pytest.approx(100 * 5 / 6 * 0.968)
    assert single(Meteor(), 'bowls', 'bowl') == pytest.approx(50.0)  # one match in one run: penalty 0.5
    assert single(Meteor(), '', 'bowl') == 0.0 and single(Meteor(), 'cup', 'bowl') == 0.0
    assert Meteor().modules == 'exact, stem'
    with pytest.raises(SetupError, match='data.noun'):
        Meteor('/nowhere')


def test_cider_by_hand():
    """References 'a b' and 'a c': every n-gram but 'a' is in one of two texts, weight log 2; 'a' in both, weight 0.

    Answer 'a b' to 'a b': unigrams: vectors (0, log 2): cosine 1; bigrams: cosine 1; no longer ones. 10 * 2/4 = 5.
    Answer 'c b' to 'a c': unigrams c, b (one each, log 2) against c: 1 / sqrt 2; bigrams differ: 10 / sqrt 2 / 4.
    """
    got = CiderD().measure(['a b', 'c b'], ['a b', 'a c'])[:, 0]
    np.testing.assert_allclose(got, [5.0, 10 / math.sqrt(2) / 4], rtol=1e-12)


def test_cider_clips_repetition_and_punishes_length():
    """Reference 'b', another 'z'. Answer 'b b': clipped 1 * 1 over 2 * 1 = 1/2, and exp(-1 / 72) for one word more.

    Without the clip the cosine would be 1: repetition would cost nothing.
    """
    got = CiderD().measure(['b b', 'z'], ['b', 'z'])[:, 0]
    np.testing.assert_allclose(got, [10 / 4 * 0.5 * math.exp(-1 / 72), 10 / 4], rtol=1e-12)
    assert CiderD().combine(CiderD().measure(['b', 'z'], ['b', 'z'])) == pytest.approx(2.5)
    assert CiderD().measure(['only'], ['only'])[0, 0] == 0.0  # one text: no word tells it from others


def test_similarity_is_the_mean_cosine():
    table = {'a': [1.0, 0.0], 'b': [0.0, 1.0], 'c': [0.6, 0.8]}
    metric = Similarity('S', lambda texts: np.array([table[t] for t in texts]))
    assert metric.combine(metric.measure(['a', 'c'], ['b', 'a'])) == pytest.approx(30.0)


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        rows = rng.normal(3.0, 1.0, (60, 1))
        f = figure(rows, lambda r: float(r.mean()), resamples=200)
        hits += f.low <= 3.0 <= f.high
        assert f.low < f.value < f.high and f.samples == 60
    assert 85 <= hits <= 100
    with pytest.raises(ConfigError, match='no samples'):
        figure(np.zeros((0, 1)), lambda r: 0.0)


def test_a_change_is_resampled_in_pairs():
    """Samples differ by a factor of thousand, but each grew by a tenth: the change is certain."""
    old = np.array([[1.0], [10.0], [1000.0]])
    change = relative_change(old * 1.1, old, lambda r: float(r.mean()))
    assert change.value == pytest.approx(0.1) and change.low == pytest.approx(0.1) == change.high
    assert relative_change(old, old * 0, lambda r: float(r.mean())) is None
    with pytest.raises(ConfigError, match='same samples'):
        relative_change(old, old[:2], lambda r: 0.0)


def test_a_missing_library_is_named():
    with pytest.raises(SetupError, match='language'):
        need('no_such_library_at_all')


# -- questions --------------------------------------------------------------------------------------------------

ENTRY = {
    'features': {'move_primitive': ['move forward', 'stop']},
    'alt_instruction': {
        'Caption': 'A red cube and a bowl.',
        'QA': [{'question': 'What colour is the cube?', 'answer': 'Red.'}, {'question': 'q', 'answer': 'a'}],
        'CR': [{'question': 'lift it', 'answer': 'I lift.'}],
        'CC': [{'question': 'I want to tidy up.', 'answer': 'I put the cube in the bowl.'}],
    },
}


def test_questions_of_an_entry():
    got = list(language.questions_of('f/1', ENTRY, lambda: None))
    assert [(q.kind, q.prompt, q.reference) for q in got] == [
        ('caption', CAPTION_REQUESTS[0], 'A red cube and a bowl.'),
        ('qa', 'What colour is the cube?', 'Red.'),
        ('response', 'I want to tidy up.', 'I put the cube in the bowl.'),
    ]
    assert not list(language.questions_of('f/2', {'features': {}}, lambda: None))


@pytest.fixture
def validation(tmp_path):
    """Annotation file of three episodes, pictures of two of them, and general conversations."""
    root = tmp_path / 'val'
    (root / 'images' / 'drawer_7').mkdir(parents=True)
    entries = {'drawer_7': {str(k): ENTRY for k in range(3)}}
    (root / 'bridge_instruction.json').write_text(json.dumps(entries))
    for k in range(2):
        Image.fromarray(doubles.image(40, 50, k)).save(root / 'images' / 'drawer_7' / f'{k}.png')
    talk = [
        {
            'id': f'g{k}',
            'image': f'images/drawer_7/{k % 2}.png',
            'conversations': [
                {'from': 'human', 'value': '<image>\nWhat action should the robot take?'},
                {'from': 'gpt', 'value': 'I will move to the red cube.'},
            ],
        }
        for k in range(4)
    ]
    text = [{'id': 't', 'conversations': [{'from': 'human', 'value': 'You are'}, {'from': 'gpt', 'value': 'a robot'}]}]
    (root / 'general.json').write_text(json.dumps(talk + text))
    return root


def test_questions_from_files(validation):
    questions = list(language.from_files(validation / 'bridge_instruction.json', validation / 'images'))
    assert [(q.key, q.kind) for q in questions][:4] == [
        ('drawer_7/0', 'caption'),
        ('drawer_7/0', 'qa'),
        ('drawer_7/0', 'response'),
        ('drawer_7/1', 'caption'),
    ]
    assert len(questions) == 6  # the third episode has no picture
    np.testing.assert_array_equal(questions[0].image(), doubles.image(40, 50, 0))
    np.testing.assert_array_equal(questions[5].image(), doubles.image(40, 50, 1))
    with pytest.raises(DataError, match='no picture'):
        list(language.from_files(validation / 'bridge_instruction.json', validation))
    (validation / 'bad.json').write_text(json.dumps({'../..': {'1': ENTRY}}))
    with pytest.raises(DataError, match='leads out'):
        list(language.from_files(validation / 'bad.json', validation / 'images'))


def test_questions_from_a_dataset(tmp_path):
    from instructvla_ros.data.episodes import Episode, Frames, Meta, Writer

    pictures = {v: [doubles.image(24, 32, 10 * n + k) for k in range(2)] for n, v in enumerate(('front', 'wrist'))}
    with Writer(tmp_path / 'ds', Meta('mine', 'fr3', 0.1, {'front': (32, 24), 'wrist': (32, 24)})) as writer:
        for name, annotations in (('a', ENTRY), ('b', {})):
            writer.add(
                Episode(
                    id=name,
                    instruction='lift the cube',
                    step_period=0.1,
                    stamps_ns=np.array([0, 100_000_000]),
                    proprio=np.zeros((2, 8)),
                    q=np.zeros((2, 7)),
                    dq=np.zeros((2, 7)),
                    actions=np.zeros((2, 7)),
                    views={v: Frames.encode(p, 0) for v, p in pictures.items()},
                    annotations=annotations,
                )
            )
    questions = list(language.from_dataset(tmp_path / 'ds'))
    assert [(q.key, q.kind) for q in questions] == [('mine/a', k) for k in language.KINDS]
    np.testing.assert_array_equal(questions[0].image(), pictures['front'][0])
    both = next(language.from_dataset(tmp_path / 'ds', views=('front', 'wrist')))
    np.testing.assert_array_equal(both.image(), np.hstack([pictures['front'][0], pictures['wrist'][0]]))
    np.testing.assert_array_equal(next(language.from_dataset(tmp_path / 'ds', count=2)).image(), both.image())
    (tmp_path / 'more.json').write_text(json.dumps({'mine': {'b': ENTRY}}))
    more = list(language.from_dataset(tmp_path / 'ds', tmp_path / 'more.json'))
    assert {q.key for q in more} == {'mine/a', 'mine/b'}
    with pytest.raises(DataError, match='no view side'):
        list(language.from_dataset(tmp_path / 'ds', views=('side',)))


# -- a checkpoint speaks ----------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return doubles.small_bundle(tmp_path_factory.mktemp('small'))


def test_answers_and_losses_are_those_of_the_plain_model(bundle):
    import torch

    from instructvla_ros.model.images import siglip_pixels
    from instructvla_ros.model.instructvla import Batch

    picture, prompt = doubles.image(40, 50), 'What colour is the cube?'
    length = len(bundle.prompts.question(prompt)) + 5
    speaker = language.Speaker(bundle, total=length)
    pixels = torch.from_numpy(siglip_pixels(picture, bundle.config.vision.image_size))[None]
    ids = torch.from_numpy(bundle.prompts.question(prompt))[None]
    tokens = bundle.model.sentence(ids, pixels, end_id=bundle.prompts.end_id, limit=5)[0]
    told = speaker.ask([(picture, prompt), (doubles.image(40, 50, 3), 'And the ball?'), (picture, prompt)])
    assert told[0] == told[2] == bundle.prompts.response(tokens) and len(told) == 3 and 1 <= len(tokens) <= 5
    messages = [{'role': 'user', 'content': prompt}, {'role': 'assistant', 'content': 'I will move to the red cube.'}]
    encoded = bundle.prompts.dialog(messages)
    batch = Batch(torch.from_numpy(encoded.ids)[None], torch.from_numpy(encoded.labels)[None], pixels)
    nats, count = speaker.loss(messages, picture)
    assert count == int((encoded.labels != -100).sum())
    assert nats / count == pytest.approx(bundle.model(batch).ce.item(), rel=1e-5)
    assert speaker.loss(messages, None)[1] == count  # text only


def test_a_run_continues_and_asks_nothing_twice(bundle, validation, tmp_path, monkeypatch):
    monkeypatch.setattr(language, 'AT_ONCE', 2)
    speaker = language.Speaker(bundle, total=60)
    questions = list(language.from_files(validation / 'bridge_instruction.json', validation / 'images'))
    file = tmp_path / 'answers.jsonl'
    first = language.answer_all(speaker, questions, file)
    next(first), next(first)
    first.close()
    with file.open('a') as out:
        out.write('{"key": "dra')
    rest = list(language.answer_all(speaker, questions, file))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rest) == 4 and [(r['key'], r['kind']) for r in rows] == [(q.key, q.kind) for q in questions]
    assert all([r['answer']] == speaker.ask([(q.image(), q.prompt)]) for r, q in zip(rows, questions, strict=True))


def test_scores_by_kind():
    rows = [{'kind': k, 'answer': a, 'reference': MAT} for k in ('caption', 'qa') for a in (CAT, MAT)]
    got = language.score(rows, [Bleu(1), CiderD()])
    assert list(got) == ['caption', 'qa'] and got['qa']['BLEU-1'].value == pytest.approx(100 * 11 / 12)
    assert got['qa']['BLEU-1'].samples == 2


def test_forgetting_by_hand(tmp_path):
    """Nats (2, 6) over tokens (1, 3) is 2 a token; (3, 9) over the same is 3: half as much again for every sample."""
    for name, nats, answer in (('base', (2.0, 6.0), MAT), ('new', (3.0, 9.0), CAT)):
        (tmp_path / name).mkdir()
        losses = [{'key': k, 'nats': n, 'tokens': t} for k, (n, t) in enumerate(zip(nats, (1, 3), strict=True))]
        losses.append({'key': 9, 'nats': 0.0, 'tokens': 0})  # nothing to say: no part of the mean
        (tmp_path / name / language.GENERAL).write_text(''.join(json.dumps(r) + '\n' for r in losses))
        told = [{'key': f'{k}/g', 'kind': 'general', 'prompt': 'p', 'reference': MAT, 'answer': answer} for k in (0, 1)]
        (tmp_path / name / language.ANSWERS).write_text(''.join(json.dumps(r) + '\n' for r in told))
    got = language.forgetting(tmp_path / 'new', tmp_path / 'base', [Bleu(1), Bleu(4)])
    loss = got['cross entropy']
    assert (loss['base'], loss['now'], loss['samples']) == (2.0, 3.0, 2)
    assert loss['change'] == Figure(0.5, 0.5, 0.5, 2)
    assert got['BLEU-1']['change'].value == pytest.approx(-1 / 6) and got['BLEU-4']['now'] == 0.0
    page = language_report.write(tmp_path / 'page', {}, name='mine', changes=got, base='before').read_text()
    assert '+50.0 %' in page and '\N{MINUS SIGN}16.7 %' in page and 'against before' in page
    other = {'key': 0, 'nats': 1.0, 'tokens': 7}
    (tmp_path / 'base' / language.GENERAL).write_text(json.dumps(other) + '\n')
    with pytest.raises(DataError, match='other tokens'):
        language.forgetting(tmp_path / 'new', tmp_path / 'base', [])
    (tmp_path / 'base' / language.GENERAL).write_text('')
    with pytest.raises(DataError, match='in common'):
        language.forgetting(tmp_path / 'new', tmp_path / 'base', [])


def test_general_conversations_lose_more_after_damage(bundle, validation, tmp_path):
    """The forgetting figure of a copy whose output rows were disturbed is positive and beyond its interval."""
    import copy

    import torch

    data = Conversations.open(validation / 'general.json')
    worse = copy.deepcopy(bundle)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        rows = worse.model.vlm.lm_head.weight
        rows.add_(torch.randn(rows.shape, generator=generator) * 2.0)
    for name, one in (('base', bundle), ('new', worse)):
        (tmp_path / name).mkdir()
        assert len(list(language.loss_all(language.Speaker(one), data, tmp_path / name / language.GENERAL))) == 5
        again = list(language.loss_all(language.Speaker(one), data, tmp_path / name / language.GENERAL))
        assert not again
    change = language.forgetting(tmp_path / 'new', tmp_path / 'base', [])['cross entropy']['change']
    assert 0.0 < change.low <= change.value


def test_sentence_encoder_reads_a_local_folder_only(tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizer

    from instructvla_ros.model.sentence_encoder import SentenceEncoder

    vocabulary = {w: k for k, w in enumerate(('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'red', 'cube', 'bowl'))}
    sizes = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 32}
    BertModel(BertConfig(vocab_size=8, max_position_embeddings=32, **sizes)).save_pretrained(tmp_path / 'm')
    BertTokenizer(vocab=vocabulary).save_pretrained(tmp_path / 'm')
    for pooling in ('mean', 'cls', 'pooler'):
        encode = SentenceEncoder(tmp_path / 'm', pooling, batch=2)
        got = encode(['red cube', 'bowl', 'red cube'])
        assert got.shape == (3, 16) and np.allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-5)
        np.testing.assert_allclose(got[0], got[2], atol=1e-5)  # padding and batch do not matter
    with pytest.raises(CheckpointError, match='config.json'):
        SentenceEncoder('sentence-transformers/all-mpnet-base-v2')
    with pytest.raises(ConfigError, match='pooling'):
        SentenceEncoder(tmp_path / 'm', 'max')


def test_command_from_end_to_end(bundle, validation, tmp_path, capsys):
    from instructvla_ros.model.checkpoint import save

    checkpoint = str(save(bundle, tmp_path / 'checkpoint'))
    out = tmp_path / 'out'
    command = ['evaluate', 'language', '--checkpoint', checkpoint, '--base', checkpoint]
    command += ['--annotations', str(validation / 'bridge_instruction.json'), '--images', str(validation / 'images')]
    command += ['--general', str(validation / 'general.json'), '--length', '60', '--device', 'cpu']
    command += ['--out', str(out), '--json']
    assert cli.main(command) == 0
    got = json.loads(capsys.readouterr().out)
    assert set(got['scores']) == set(language.KINDS) and got['scores']['qa']['BLEU-1']['samples'] == 2
    change = got['forgetting']['cross entropy']
    assert change['change']['value'] == 0.0 and change['samples'] == 5  # the base is the same checkpoint
    page = (out / 'language.html').read_text()
    assert 'What it said' in page and page.count('not measured') >= 2 * 3  # SBERT and SimCSE of three kinds
    assert 'http' not in page.split('<main', 1)[1]
    before = (out / language.ANSWERS).read_text()
    assert cli.main(command) == 0 and (out / language.ANSWERS).read_text() == before
    capsys.readouterr()
    assert cli.main([*command, '--length', '61']) == 2
    assert 'length was 60, is 61' in capsys.readouterr().err
    for wrong, said in (
        ([], '--checkpoint'),
        (['--checkpoint', checkpoint], 'nothing to ask'),
        (['--checkpoint', checkpoint, '--annotations', 'x'], '--images'),
        (['--checkpoint', checkpoint, '--data', 'x', '--base', 'y'], '--general'),
    ):
        assert cli.main(['evaluate', 'language', *wrong]) == 2
        assert said in capsys.readouterr().err
