"""What a run cost: the loss on captions, questions and general conversations that it never saw, before and after."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..data.prompts import CAPTION_REQUESTS
from ..errors import DataError
from ..model.checkpoint import Bundle, load, open_source
from ..model.images import siglip_scale, siglip_square
from ..model.prompt import IGNORE, Encoded
from .examples import Examples
from .general import General, cut
from .setup import Run

FILE = 'forgetting.json'
SAMPLES = 64
"""Dialogues of each source."""
BATCH = 8


@dataclass(frozen=True)
class Probe:
    """A dialogue the run does not train on, and its picture, uint8 (S, S, 3) or None."""

    source: str
    encoded: Encoded
    picture: Any


@dataclass(frozen=True)
class Forgetting:
    """Mean loss per answer token [nats].

    Attributes:
        before, after: source ('scenes' or 'general') -> loss; ``after`` is empty until the run ends.
        samples: source -> dialogues.
    """

    init: str
    samples: dict[str, int]
    before: dict[str, float]
    after: dict[str, float]

    def change(self, source: str) -> float:
        """Relative change of a loss; positive is forgetting; nan before the end."""
        if source not in self.after or not self.before.get(source):
            return float('nan')
        return self.after[source] / self.before[source] - 1.0


def probes(run: Run, most: int = SAMPLES) -> list[Probe]:
    """The same dialogues for every run on the same data: scenes first, then conversations."""
    found: list[Probe] = []
    for examples in run.held_out:
        found += _scenes(examples, most - len(found))
    if run.general is not None:
        found += _general(run.general, most)
    return found


@torch.no_grad()
def losses(bundle: Bundle, some: Sequence[Probe]) -> dict[str, float]:
    """Mean loss per answer token by source; the model is left in the mode it was in."""
    model = bundle.model
    training = model.training
    model.eval()
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    ordered = sorted(some, key=lambda p: (p.source, len(p.encoded.ids)))
    try:
        for source in sorted({p.source for p in some}):
            mine = [p for p in ordered if p.source == source]
            for start in range(0, len(mine), BATCH):
                total, tokens = _loss(bundle, mine[start : start + BATCH])
                sums[source] = sums.get(source, 0.0) + total
                counts[source] = counts.get(source, 0) + tokens
    finally:
        model.train(training)
    return {s: sums[s] / counts[s] for s in sums if counts[s]}


def count(some: Sequence[Probe]) -> dict[str, int]:
    """Dialogues by source."""
    return {s: sum(p.source == s for p in some) for s in sorted({p.source for p in some})}


def save(folder: Path, found: Forgetting) -> None:
    """Write ``forgetting.json``.

    Raises:
        DataError: the disk is full.
    """
    draft = folder / f'{FILE}.part'
    try:
        draft.write_text(json.dumps(asdict(found), indent=1) + '\n', encoding='utf-8')
        os.replace(draft, folder / FILE)
    except OSError as err:
        raise DataError(f'cannot write {folder / FILE}: {err.strerror}') from None


def read(folder: Path) -> Forgetting | None:
    """What an earlier call wrote, or None; a damaged file counts as none."""
    try:
        return Forgetting(**json.loads((folder / FILE).read_text(encoding='utf-8')))
    except (OSError, ValueError, TypeError):
        return None


def _loss(bundle: Bundle, some: Sequence[Probe]) -> tuple[float, int]:
    """Summed loss and answer tokens of a batch."""
    device, vlm = bundle.model.device, bundle.model.vlm
    ids, labels = bundle.prompts.collate([p.encoded for p in some])
    pictures = [p.picture for p in some if p.picture is not None]
    images = None
    if pictures:
        images = vlm.image_tokens(torch.from_numpy(siglip_scale(np.stack(pictures))).to(device))
    hidden = vlm.hidden(vlm.embed(torch.from_numpy(ids).to(device), images))
    target = torch.from_numpy(labels).to(device)[:, 1:]
    wanted = target != IGNORE
    if not bool(wanted.any()):
        return 0.0, 0
    value = F.cross_entropy(vlm.logits(hidden[:, :-1][wanted]).float(), target[wanted], reduction='sum')
    return float(value), int(wanted.sum())


def _scenes(examples: Examples, most: int) -> list[Probe]:
    """Captions and questions about first frames, one of each episode in turn."""
    out: list[Probe] = []
    store = examples.store
    for turn in range(4):
        for row in examples.first:
            if len(out) >= most:
                return out
            texts = examples.corpus[store.episode[row]]
            pairs = [(CAPTION_REQUESTS[0], c) for c in texts.captions[:1]] + [(q, a) for q, a in texts.questions]
            if turn >= len(pairs):
                continue
            question, answer = pairs[turn]
            messages = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]
            out.append(Probe('scenes', cut(examples.prompts.dialog(messages)), np.array(store.joined[row])))
    return out


def _general(general: General, most: int) -> list[Probe]:
    out: list[Probe] = []
    for k in general.held_out:
        if len(out) >= most:
            break
        sample = general.read(int(k))
        if sample is None:
            continue
        picture = None if sample.image is None else siglip_square(sample.image, general.image_size)
        encoded = cut(general.prompts.dialog(sample.messages, images=0 if picture is None else 1))
        out.append(Probe('general', encoded, picture))
    return out


def begin(run: Run, folder: Path, device: torch.device) -> list[Probe]:
    """Probes of a run whose model still is what it starts from; writes the losses before, unless they are there.

    A model from random weights has nothing to forget: no probes.
    """
    options = run.options
    some = probes(run) if options.init else []
    found = read(folder)
    if not some or (found is not None and found.init == options.init and found.samples == count(some)):
        return some
    # The checkpoint itself, not the stage-2 model that was made of it.
    same = open_source(options.init).config.stage == run.bundle.config.stage
    init = run.bundle if same else load(options.init)
    init.model.to(device)
    save(folder, Forgetting(options.init, count(some), losses(init, some), {}))
    return some


def end(run: Run, folder: Path, some: Sequence[Probe]) -> Forgetting | None:
    """Measure again with the weights of the run as they are now, and write it down."""
    found = read(folder)
    if found is None or not some:
        return None
    found = replace(found, after=losses(run.bundle, some))
    save(folder, found)
    return found
