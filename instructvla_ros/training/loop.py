"""The training loop: accelerate underneath, progress shown, interruptible, exact to the step when it goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..errors import DataError
from ..model.checkpoint import save
from .objective import Objective
from .settings import Training
from .setup import Run, prepare
from .state import Average, Log, load_state, save_state
from .validate import validate

log = logging.getLogger(__name__)
CHECKPOINT, BEST = 'checkpoint', 'best'


@dataclass(frozen=True)
class Outcome:
    """Result of a run.

    Attributes:
        checkpoint: folder of the last weights (averaged when asked for). best: those of the smallest held-out loss.
        steps: made in all. best_loss: nan without validation. interrupted: the same command goes on.
    """

    checkpoint: Path
    best: Path
    steps: int
    best_loss: float
    interrupted: bool = False


def learning_rate(options: Training, step: int) -> float:
    """Rate of a step: linear warm-up, constant, cosine to nothing at the end."""
    rate = options.lr * min(1.0, (step + 1) / max(1, options.warmup))
    start = options.steps * (1.0 - options.decay)
    if options.decay and step > start:
        rate *= 0.5 * (1.0 + math.cos(math.pi * (step - start) / max(1.0, options.steps - start)))
    return rate


def train(options: Training, out: str | Path, progress: bool = True) -> Outcome:
    """Train, or go on with the run in ``out``.

    Raises:
        ConfigError, DataError, CheckpointError: see :func:`~.setup.prepare`; and another run lies in ``out``.
    """
    from accelerate import Accelerator

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision=options.precision, cpu=not torch.cuda.is_available())
    torch.manual_seed(options.seed)
    run = prepare(options, folder, progress and accelerator.is_main_process)
    objective = Objective(run.bundle.model, options).train()
    objective.model.checkpoint_activations(options.checkpoint_activations)
    optimizer = torch.optim.AdamW(_groups(objective, options), options.lr, (0.9, options.beta2))
    average = Average(objective, options.ema)
    state = load_state(folder)
    first, best = _restore(state, objective, optimizer, average, options, folder) if state else (0, math.inf)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    average.values = {k: v.to(accelerator.device) for k, v in average.values.items()}
    book = Log(folder, first) if accelerator.is_main_process else None
    step, interrupted = first, False
    bar = tqdm(
        total=options.steps, initial=first, desc=options.recipe, unit='step', disable=not progress or book is None
    )
    smooth: dict[str, float] = {}
    try:
        for step in _steps(first, options.steps):
            parts = _step(wrapped, optimizer, accelerator, run, step)
            average.update(objective)
            for name, value in parts.items():
                smooth[name] = value if name not in smooth else 0.98 * smooth[name] + 0.02 * value
            bar.update()
            done = step + 1
            if not np.isfinite(parts['total']):
                raise DataError(
                    f'the loss is {parts["total"]} in step {done}: lower the learning rate, or look for bad data'
                )
            if book is not None and (done % 20 == 0 or done == options.steps):
                book.write(done, 'train', {**smooth, 'lr': learning_rate(options, step)})
                bar.set_postfix({k: f'{v:.3f}' for k, v in smooth.items() if k != 'total'})
            if run.held_out and book is not None and (done % options.validate_every == 0 or done == options.steps):
                loss = _validate(objective, run, average, book, done)
                if loss < best:
                    best = loss
                    _save(objective, run, average, folder / BEST)
            if book is not None and done % options.save_every == 0:
                _save_state(folder, objective, optimizer, average, done, best, options)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        bar.close()
    done = step if interrupted else options.steps
    if book is not None:
        if first < options.steps:
            _save_state(folder, objective, optimizer, average, done, best, options)
        _save(objective, run, average, folder / CHECKPOINT)
        book.close()
    return Outcome(folder / CHECKPOINT, folder / BEST, done, best, interrupted)


def _steps(first: int, last: int) -> Iterator[int]:
    yield from range(first, last)


def _step(wrapped: Any, optimizer: Any, accelerator: Any, run: Run, step: int) -> dict[str, float]:
    """One optimiser step. All that is random follows from seed, step and process."""
    options = run.options
    rng = np.random.default_rng([options.seed, step, accelerator.process_index])
    torch.manual_seed(options.seed * 1_000_003 + step)
    for group in optimizer.param_groups:
        group['lr'] = learning_rate(options, step)
    optimizer.zero_grad()
    sums: dict[str, float] = {}
    parts = options.accumulate
    for k in range(parts):
        examples = run.pick(rng)
        batch, labels = examples.draw(rng, max(1, options.batch // parts))
        general = examples.general(rng, options.general_batch) if options.general_batch and k == 0 else None
        device = accelerator.device
        total, values = wrapped(batch.to(device), labels.to(device), None if general is None else general.to(device))
        accelerator.backward(total / parts)
        for name, value in {'total': total.detach(), **values}.items():
            sums[name] = sums.get(name, 0.0) + float(value) / parts
    if options.clip:
        accelerator.clip_grad_norm_([p for g in optimizer.param_groups for p in g['params']], options.clip)
    optimizer.step()
    return sums


def _groups(objective: nn.Module, options: Training) -> list[dict[str, Any]]:
    """Parameters with and without weight decay: only matrices are decayed."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    return [
        {'params': [p for p in trained if p.dim() >= 2], 'weight_decay': options.weight_decay},
        {'params': [p for p in trained if p.dim() < 2], 'weight_decay': 0.0},
    ]


def _validate(objective: Objective, run: Run, average: Average, book: Log, step: int) -> float:
    average.swap(objective)
    try:
        each = [
            validate(objective, e, run.statistics, run.options.validation_frames, run.options.batch)
            for e in run.held_out
        ]
    finally:
        average.swap(objective)
        objective.train()
    values = {k: float(np.mean([e[k] for e in each if k in e])) for k in {k for e in each for k in e}}
    loss = sum(values.get(k, 0.0) for k in ('flow', 'ce', 'pointing'))
    book.write(step, 'validation', {**values, 'loss': loss})
    log.info('step %d: %s', step, ', '.join(f'{k} {v:.4g}' for k, v in sorted(values.items())))
    return loss


def _save(objective: Objective, run: Run, average: Average, folder: Path) -> None:
    average.swap(objective)
    try:
        objective.eval()
        save(run.bundle, folder, origin=run.options.init, overwrite=True)
    finally:
        average.swap(objective)
        objective.train()


def _save_state(
    folder: Path, objective: Objective, optimizer: Any, average: Average, step: int, best: float, options: Training
) -> None:
    inner = getattr(optimizer, 'optimizer', optimizer)
    trained = {n: p.detach().cpu() for n, p in objective.named_parameters() if p.requires_grad}
    content = {
        'step': step,
        'best': best,
        'recipe': options.recipe,
        'weights': trained,
        'average': {k: v.cpu() for k, v in average.values.items()},
        'average_steps': average.steps,
        'optimizer': inner.state_dict(),
    }
    save_state(folder, content)


def _restore(
    state: dict[str, Any], objective: Objective, optimizer: Any, average: Average, options: Training, folder: Path
) -> tuple[int, float]:
    own = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    saved = state['weights']
    if state['recipe'] != options.recipe or own.keys() != saved.keys():
        raise DataError(f'{folder} holds a run of {state["recipe"]} with other weights; choose another folder')
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])
    average.values = dict(state['average'])
    average.steps = int(state['average_steps'])
    optimizer.load_state_dict(state['optimizer'])
    return int(state['step']), float(state['best'])
