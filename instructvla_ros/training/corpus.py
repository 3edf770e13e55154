"""What may be said about each episode: instructions, VLA-IT texts, and which objects they mean.

A simulated scene can be talked about in many ways, and asked for things that the demonstration did not do: such
*variants* of an episode exist for every object that can be named. A recorded episode has one variant: its own texts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from ..sim.annotations import command_of, instructions
from ..sim.describe import caption, questions
from ..sim.language import CONTAINERS, GRASPABLE, sentences
from ..sim.relations import scene_objects
from ..sim.tasks import Episode as Task
from .demonstrations import training_task
from .frames import EpisodeText, FrameStore

FILE = 'corpus.json'
VERSION = 1


@dataclass(frozen=True)
class Variant:
    """One meaning and the sentences for it.

    Attributes:
        target, destination: positions of the objects in ``info['objects']``, -1 when unknown or none.
        plain: instructions as a person gives them. rewritten (CR), situated (CC): [instruction, the robot's answer].
        demonstrated: the episode's motion does this.
    """

    target: int
    destination: int
    plain: list[str]
    rewritten: list[list[str]] = field(default_factory=list)
    situated: list[list[str]] = field(default_factory=list)
    demonstrated: bool = False


@dataclass(frozen=True)
class Texts:
    """All texts of one episode. captions: of its first frame. questions: [question, short answer]."""

    variants: list[Variant]
    captions: list[str] = field(default_factory=list)
    questions: list[list[str]] = field(default_factory=list)
    primitives: list[str] = field(default_factory=list)

    def annotations(self, variant: Variant, rng: np.random.Generator) -> dict[str, Any]:
        """Entry in the VLA-IT format (specification 9.5) with the sentences of one variant."""
        alt: dict[str, Any] = {
            'QA': _entries(self.questions),
            'CR': _entries(variant.rewritten),
            'CC': _entries(variant.situated),
        }
        if self.captions:
            alt['Caption'] = self.captions[int(rng.integers(len(self.captions)))]
        return {'features': {'move_primitive': self.primitives}, 'alt_instruction': alt}


def read_corpus(store: FrameStore, progress: bool = True) -> list[Texts]:
    """Texts of every episode of a store, made once and kept beside its frames."""
    file = store.place / FILE
    if file.is_file():
        content = json.loads(file.read_text(encoding='utf-8'))
        if content['version'] == VERSION:
            return [_read(t) for t in content['episodes']]
    bar = tqdm(store.texts, desc='sentences', unit='episode', disable=not progress)
    corpus = [_simulated(t) if t.info.get('objects') else _recorded(t) for t in bar]
    draft = file.with_suffix('.part')
    draft.write_text(json.dumps({'version': VERSION, 'episodes': [asdict(t) for t in corpus]}), encoding='utf-8')
    os.replace(draft, file)
    return corpus


def every_sentence(corpus: Sequence[Texts]) -> list[str]:
    """All different sentences, for training a tokenizer."""
    found: set[str] = set()
    for texts in corpus:
        found.update(texts.captions)
        for pair in texts.questions:
            found.update(pair)
        for variant in texts.variants:
            found.update(variant.plain)
            for pair in (*variant.rewritten, *variant.situated):
                found.update(pair)
    return sorted(found)


def _simulated(text: EpisodeText) -> Texts:
    task = training_task(str(text.info['task']), int(text.info['seed']), float(text.info.get('alike', 0.0)))
    rng = np.random.default_rng([int(text.info['seed']), 3])
    objects = list(scene_objects(task.scene).values())
    names = [o['name'] for o in text.info['objects']]
    variants = [_variant(task, names, rng, True)]
    for name in names:
        for other in _retold(task, name, rng):
            if (other.task, other.target, other.destination) != (task.task, task.target, task.destination):
                variants.append(_variant(other, names, rng, False))
    captions = sorted({caption(objects, rng) for _ in range(6)})
    asked = sorted({pair for _ in range(3) for pair in questions(objects, rng)})
    return Texts(variants, captions, [list(p) for p in asked])


def _retold(task: Task, name: str, rng: np.random.Generator) -> list[Task]:
    """The same scene with another request: pick this object, or put it into one of the containers."""
    kinds = {o.name: o.category for o in task.scene.objects}
    if kinds[name] not in GRASPABLE:
        return []
    out = [replace(task, task='pick', target=name, destination='', relation='')]
    for goal in (n for n, category in kinds.items() if category in CONTAINERS):
        relation = 'on' if kinds[goal] == 'plate' else 'in'
        out.append(replace(task, task='put', target=name, destination=goal, relation=relation))
    return out


def _variant(task: Task, names: Sequence[str], rng: np.random.Generator, demonstrated: bool) -> Variant:
    plain = [s for s in sentences(command_of(task))]
    answer = [[p.text, p.response] for p in instructions(task, 'plain', rng)][:2]
    own = [task.instruction] if demonstrated else []
    return Variant(
        names.index(task.target),
        names.index(task.destination) if task.destination else -1,
        [*own, *plain],
        answer + [[p.text, p.response] for p in instructions(task, 'aggregation', rng, 'train')],
        [[p.text, p.response] for p in instructions(task, 'situated', rng, 'train')],
        demonstrated,
    )


def _recorded(text: EpisodeText) -> Texts:
    alt: Mapping[str, Any] = text.annotations.get('alt_instruction') or {}
    features: Mapping[str, Any] = text.annotations.get('features') or {}
    pairs = {k: [[i['question'], i['answer']] for i in alt.get(k) or ()] for k in ('QA', 'CR', 'CC')}
    only = Variant(-1, -1, [text.instruction], pairs['CR'], pairs['CC'], True)
    captions = [alt['Caption']] if alt.get('Caption') else []
    return Texts([only], captions, pairs['QA'], [str(p) for p in features.get('move_primitive') or ()])


def _entries(pairs: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    return [{'question': q, 'answer': a} for q, a in pairs]


def _read(content: Mapping[str, Any]) -> Texts:
    return Texts(**{**content, 'variants': [Variant(**v) for v in content['variants']]})
