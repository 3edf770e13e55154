"""Captions, answers and responses of a checkpoint on VLA-IT annotations, and what training made it forget.

Three questions about the first picture of each episode (InstructVLA paper, VLA-IT validation): a caption, the first
question, and the first situation as plain text without the action wrapper. The forgetting figure asks general
conversations of two checkpoints and compares cross entropy and scores on the same samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PilImage

from ..data.conversations import Conversations
from ..data.episodes import Dataset
from ..data.prompts import CAPTION_REQUESTS, caption, pairs
from ..data.vla_it import Annotations
from ..datatypes import Image
from ..errors import DataError
from ..geometry import Array
from ..model.checkpoint import Bundle
from ..model.images import join_views, siglip_pixels
from ..model.instructvla import Batch
from ..model.together import Together
from . import runlog
from .language_metrics import Figure, Metric, figure, relative_change
from .simpler import read_rows

KINDS = ('caption', 'qa', 'response')
ANSWERS, GENERAL = 'answers.jsonl', 'general.jsonl'
TOTAL = 350
"""Most tokens of a prompt with its answer, picture included (specification of the VLA-IT validation)."""
LONGEST_DIALOG = 1024
AT_ONCE = 64
"""Questions asked together; an interrupted run asks at most so many again."""
SUFFIXES = ('.jpg', '.jpeg', '.png')


@dataclass(frozen=True)
class Question:
    """One thing to ask. ``key``: unique with ``kind``. ``image``: opens the picture (H, W, 3), None for text only."""

    key: str
    kind: str
    prompt: str
    reference: str
    image: Callable[[], Image | None]


def questions_of(key: str, entry: Mapping[str, Any], image: Callable[[], Image | None]) -> Iterator[Question]:
    """The three questions of one VLA-IT entry; those it has no text for are left out."""
    told, asked, situations = caption(entry), pairs(entry, 'QA'), pairs(entry, 'CC')
    if told is not None:
        yield Question(key, 'caption', CAPTION_REQUESTS[0], told, image)
    if asked:
        yield Question(key, 'qa', *asked[0], image)
    if situations:
        yield Question(key, 'response', *situations[0], image)


def from_dataset(
    folder: str | Path, annotations: str | Path = '', views: Sequence[str] = (), count: int = 1
) -> Iterator[Question]:
    """Questions about the first frames of a dataset of this package.

    Args:
        annotations: VLA-IT file on top of what the episodes carry, '' without. views: side by side; () for the first
            ``count``.

    Raises:
        DataError: not a dataset, or a view it lacks.
    """
    dataset = Dataset.open(folder)
    labels = Annotations.open(annotations) if annotations else None
    names = tuple(views) or tuple(dataset.meta.views)[:count]
    absent = [v for v in names if v not in dataset.meta.views]
    if absent:
        raise DataError(f'{folder} has no view {", ".join(absent)}; it has {", ".join(dataset.meta.views)}')
    for row in dataset.index:
        episode = dataset.read(row.id)
        if labels is not None:
            episode = labels.annotate(episode, dataset.meta.name)
        if episode.annotations and len(episode):
            picture = join_views([episode.views[v][0] for v in names])
            yield from questions_of(f'{dataset.meta.name}/{row.id}', episode.annotations, partial(_keep, picture))


def from_files(annotations: str | Path, images: str | Path) -> Iterator[Question]:
    """Questions of an annotation file with pictures ``<images>/<file_path>/<episode_id>.jpg`` (or .jpeg, .png).

    Raises:
        DataError: the file is not of the VLA-IT form, or none of its pictures is there.
    """
    labels, root, found = Annotations.open(annotations), Path(images), 0
    for file_path, episode_id in labels.keys():  # noqa: SIM118 not a mapping
        place = root / file_path / episode_id
        if not place.resolve().is_relative_to(root.resolve()):
            raise DataError(f'{annotations}: {file_path!r} / {episode_id!r} leads out of {root}')
        file = next((f for s in SUFFIXES if (f := place.with_name(place.name + s)).is_file()), None)
        entry = labels.entry(file_path, episode_id)
        if file is not None and entry is not None:
            found += 1
            yield from questions_of(f'{file_path}/{episode_id}', entry, partial(read_image, file))
    if not found:
        raise DataError(f'no picture <file_path>/<episode_id>.jpg of {annotations} is below {root}')


def from_conversations(data: Conversations, limit: int = 0) -> Iterator[Question]:
    """First turn of every general conversation that has a picture."""
    for k in range(min(limit or len(data), len(data))):
        sample = data.read(k)
        if sample.image is not None:
            prompt, reference = (sample.messages[i]['content'] for i in (0, 1))
            yield Question(f'{k}/{sample.name}', 'general', prompt, reference, partial(_keep, sample.image))


def _keep(image: Image | None) -> Image | None:
    return image


def read_image(file: Path) -> Image:
    """uint8 RGB of a picture file.

    Raises:
        DataError: not a picture.
    """
    try:
        with PilImage.open(file, formats=('JPEG', 'PNG')) as picture:
            return np.asarray(picture.convert('RGB'))
    except (OSError, SyntaxError, ValueError) as err:
        raise DataError(f'{file} is not a picture: {err}') from None


class Speaker:
    """The words of a checkpoint: greedy answers, and the cross entropy of given ones.

    Args:
        total: most tokens of prompt and answer together.
    """

    def __init__(self, bundle: Bundle, total: int = TOTAL) -> None:
        self.bundle, self._total = bundle, total
        self._together = Together(bundle)

    def ask(self, asked: Sequence[tuple[Image, str]]) -> list[str]:
        """Answers to plain user texts, each about a picture; many at once are much less work than one by one."""
        prompts = self.bundle.prompts
        told = self._together.sentences(
            [(self._pixels(image), prompts.question(text)) for image, text in asked], self._total
        )
        return [prompts.response(tokens) for tokens in told]

    @torch.no_grad()
    def loss(self, messages: Sequence[Mapping[str, str]], image: Image | None) -> tuple[float, int]:
        """Summed cross entropy [nat] of the assistant turns, and their number of tokens."""
        encoded = self.bundle.prompts.dialog(messages, images=0 if image is None else 1)
        ids, labels = (torch.from_numpy(a[:LONGEST_DIALOG])[None].to(self.bundle.model.device)
                       for a in (encoded.ids, encoded.labels))  # fmt: skip
        count = int((labels[:, 1:] != -100).sum())
        if not count:
            return 0.0, 0
        batch = Batch(ids, labels, None if image is None else self._pixels(image))
        return float(self.bundle.model(batch).ce) * count, count

    def _pixels(self, image: Image) -> torch.Tensor:
        size = self.bundle.config.vision.image_size
        return torch.from_numpy(siglip_pixels(image, size))[None].to(self.bundle.model.device)


def answer_all(speaker: Speaker, questions: Iterable[Question], file: Path) -> Iterator[dict[str, Any]]:
    """Ask what ``file`` does not hold yet; every answer is appended to it and yielded."""
    done = {(r['key'], r['kind']) for r in read_rows(file)}
    new = (q for q in questions if (q.key, q.kind) not in done)
    with file.open('a', encoding='utf-8') as out:
        while some := list(islice(new, AT_ONCE)):
            seen = [(q, image) for q in some if (image := q.image()) is not None]
            answers = speaker.ask([(image, q.prompt) for q, image in seen])
            rows = [
                {'key': q.key, 'kind': q.kind, 'prompt': q.prompt, 'reference': q.reference, 'answer': answer}
                for (q, _), answer in zip(seen, answers, strict=True)
            ]
            out.writelines(json.dumps(row) + '\n' for row in rows)
            out.flush()
            yield from rows


def loss_all(speaker: Speaker, data: Conversations, file: Path, limit: int = 0) -> Iterator[dict[str, Any]]:
    """Cross entropy of every general conversation that ``file`` does not hold yet; appended to it and yielded."""
    done = {r['key'] for r in read_rows(file)}
    with file.open('a', encoding='utf-8') as out:
        for k in range(min(limit or len(data), len(data))):
            if k in done:
                continue
            sample = data.read(k)
            nats, tokens = speaker.loss(sample.messages, sample.image)
            row = {'key': k, 'nats': nats, 'tokens': tokens}
            out.write(json.dumps(row) + '\n')
            out.flush()
            yield row


def score(rows: Sequence[Mapping[str, Any]], metrics: Sequence[Metric]) -> dict[str, dict[str, Figure]]:
    """Figure by kind of question and metric."""
    out: dict[str, dict[str, Figure]] = {}
    for kind in dict.fromkeys(r['kind'] for r in rows):
        own = [r for r in rows if r['kind'] == kind]
        answers, references = [r['answer'] for r in own], [r['reference'] for r in own]
        out[kind] = {m.name: figure(m.measure(answers, references), m.combine) for m in metrics}
    return out


def mean_loss(rows: Array) -> float:
    """Cross entropy per token [nat] of rows (n, 2) of nats and tokens."""
    return float(rows[:, 0].sum() / max(1.0, rows[:, 1].sum()))


def forgetting(new: Path, base: Path, metrics: Sequence[Metric], limit: int = 0) -> dict[str, dict[str, Any]]:
    """What changed from a base checkpoint on general samples.

    Args:
        new, base: folders with ``general.jsonl`` (losses) and ``answers.jsonl`` (rows of kind 'general').

    Returns:
        by metric: ``base`` and ``now``, and the relative ``change`` with its bootstrap interval over the samples that
        both have; None where the base scores 0. Cross entropy grows when something is forgotten, scores fall.

    Raises:
        DataError: no sample in common, or the two tokenizers split the answers differently.
    """
    out: dict[str, dict[str, Any]] = {}
    losses = [{r['key']: r for r in read_rows(p / GENERAL)} for p in (new, base)]
    common = [k for k in losses[0] if k in losses[1] and losses[0][k]['tokens'] > 0]
    if not common:
        raise DataError(f'{new} and {base} have no general sample in common')
    a, b = (np.array([[found[k]['nats'], found[k]['tokens']] for k in common], np.float64) for found in losses)
    if not np.array_equal(a[:, 1], b[:, 1]):
        raise DataError(
            'the two checkpoints split the same answers into other tokens; cross entropy cannot be compared'
        )
    out['cross entropy'] = _change(a, b, mean_loss)
    answers = [{r['key']: r for r in read_rows(p / ANSWERS) if r['kind'] == 'general'} for p in (new, base)]
    shared = [k for k in answers[0] if k in answers[1]]
    if shared:
        references = [answers[0][k]['reference'] for k in shared]
        for metric in metrics:
            rows = [metric.measure([found[k]['answer'] for k in shared], references) for found in answers]
            out[metric.name] = _change(rows[0], rows[1], metric.combine)
    return out


def _change(new: Array, old: Array, combine: Callable[[Array], float]) -> dict[str, Any]:
    change = relative_change(new, old, combine)
    return {'base': combine(old), 'now': combine(new), 'samples': len(new), 'change': change}


def plain_figures(data: Any) -> Any:
    """The same with figures as plain data."""
    if isinstance(data, Figure):
        return {'value': data.value, 'low': data.low, 'high': data.high, 'samples': data.samples}
    if isinstance(data, Mapping):
        return {k: plain_figures(v) for k, v in data.items()}
    return runlog.plain(data)
