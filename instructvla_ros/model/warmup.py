"""Use every shape once before the robot waits for it: kernels are loaded, graphs recorded, pieces compiled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from .checkpoint import Bundle
from .fast import FastPath
from .realtime import Guide
from .static import BUCKET, StaticPath

SESSIONS = 3  # a sentence being said, one that has been said and waits for its chunk, and a chunk without either
LONGEST = 48  # words of an instruction; a longer one is recorded when it comes


def warm_up(
    engine: FastPath, bundle: Bundle, *, steps: int, guided: bool, beta: float, say: Callable[[str], None]
) -> float:
    """Run all pieces on black images; seconds it took.

    Args:
        steps: of the Euler loop. guided: chunks that continue another are asked for too. beta: of their guidance.
        say: told how far it is, not more than once a second.
    """
    started = told = time.perf_counter()
    config, device = bundle.config, bundle.model.device
    pixels = torch.zeros(1, 3, config.vision.image_size, config.vision.image_size, device=device)
    work = list(_dialogs(bundle, device)) if isinstance(engine, StaticPath) else list(_dialogs(bundle, device))[:1]
    rounds = SESSIONS if isinstance(engine, StaticPath) else 1
    held, total = [], rounds * len(work) + 1
    for number in range(rounds):
        for at, (question, actions) in enumerate(work):
            session = engine.begin(pixels)
            engine.sentence(session, question, end_id=-1, limit=2)
            for action in actions[1:]:
                engine.latent(session, action)
            del session  # its buffers serve the next one
            latent = engine.latent(engine.begin(pixels), actions[0])
            if time.perf_counter() > told + 1.0:
                told = time.perf_counter()
                say(f'warming up: {number * len(work) + at + 1} of {total}, {told - started:.0f} s')
        held.append(engine.begin(pixels))  # the next round gets other buffers
    _act(engine, bundle, latent, steps, beta if guided else None)
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    say(f'warming up: done, {seconds:.1f} s')
    return seconds


def _dialogs(bundle: Bundle, device: torch.device) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """A question and its action prompts, without a sentence and with longer and longer ones; every padded length."""
    prompts = bundle.prompts
    seen: set[tuple[int, int]] = set()

    def tensor(ids: np.ndarray) -> Tensor:
        return torch.from_numpy(ids)[None].to(device)

    sentences = ['go ' * n for n in range(1, bundle.config.max_new_tokens, BUCKET // 2)]
    for words in range(1, LONGEST, BUCKET // 4):
        instruction = 'go ' * words
        question, action = prompts.reason(instruction), prompts.action(instruction)
        lengths = (-(-len(question) // BUCKET), -(-len(action) // BUCKET))
        if lengths in seen:
            continue
        answered = [prompts.action(instruction, s.strip()) for s in sentences] if not seen else []
        seen.add(lengths)
        yield tensor(question), [tensor(action), *map(tensor, answered)]


def _act(engine: FastPath, bundle: Bundle, latent: Tensor, steps: int, beta: float | None) -> None:
    config, model = bundle.config, bundle.model
    size = config.dino.image_size
    views = torch.zeros(1, config.views, 3, size, size, device=model.device)
    proprio = torch.zeros(1, 8, device=model.device) if config.proprio else None
    guides: list[Guide | None] = [None]
    if beta is not None:
        guides.append(Guide(np.zeros((config.horizon, 7)), 1, 1, beta))
    for guide in guides:
        engine.chunk(latent, views, proprio, model.noise(1), steps=steps, guide=guide)
