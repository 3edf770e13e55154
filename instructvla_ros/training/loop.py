"""The training loop: accelerate underneath, progress shown, interruptible, exact to the step when it goes on."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..errors import CheckpointError, DataError
from ..model.checkpoint import save
from . import forgetting
from .grounding import word_ids
from .objective import Objective
from .pacing import Clock, Stop
from .record import peak_memory, predict, write_facts, write_predictions
from .report import write_report
from .settings import Training
from .setup import Run, prepare
from .state import STATE, Average, Log, load_state, save_state
from .validate import validate

log = logging.getLogger(__name__)
CHECKPOINT, BEST = 'checkpoint', 'best'


@dataclass(frozen=True)
class Outcome:
    """Result of a run.

    Attributes:
        checkpoint: folder of the last weights (averaged when asked for). best: those of the smallest held-out loss.
        steps: made in all. best_loss: infinite without validation. interrupted: the same command goes on.
        report: the page about the run, None when this process did not write it.
    """

    checkpoint: Path
    best: Path
    steps: int
    best_loss: float
    interrupted: bool = False
    report: Path | None = None


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
    from accelerate import Accelerator, DistributedDataParallelKwargs

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    # A batch may leave parts unused: no motion in stage 0, no language-only dialogues in every step.
    accelerator = Accelerator(
        mixed_precision='no',  # the objective reduces it
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    torch.manual_seed(options.seed)
    with accelerator.main_process_first():  # it makes the caches that the others read
        run = prepare(options, folder, progress and accelerator.is_main_process)
    objective = Objective(run.bundle.model, options, word_ids(run.bundle.prompts)).train()
    objective.model.checkpoint_activations(options.checkpoint_activations)
    state = load_state(folder)
    if state:
        _check(state, objective, options, folder)
    probes: list[forgetting.Probe] = []
    if accelerator.is_main_process:
        write_facts(run, folder)
        probes = forgetting.begin(run, folder, accelerator.device)
    optimizer = torch.optim.AdamW(_groups(objective, options), options.lr, (0.9, options.beta2))
    average = Average(objective, options.ema)
    first, best = _restore(state, objective, optimizer, average) if state else (0, math.inf)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    average.values = {k: v.to(accelerator.device) for k, v in average.values.items()}
    book = Log(folder, first) if accelerator.is_main_process else None
    done = first
    bar = tqdm(
        total=options.steps, initial=first, desc=options.recipe, unit='step', disable=not progress or book is None
    )
    smooth: dict[str, float] = {}
    samples = options.batch * accelerator.num_processes
    clock, stop = Clock(), Stop()
    with bar, stop:
        for step in range(first, options.steps):
            parts = _step(wrapped, optimizer, accelerator, run, step)
            average.update(objective)
            done = step + 1
            for name, value in parts.items():
                smooth[name] = value if name not in smooth else 0.98 * smooth[name] + 0.02 * value
            bar.update()
            clock.tick()
            if book is not None and (done % 20 == 0 or done == options.steps):
                rate = {'lr': learning_rate(options, step), 'samples_per_s': samples * clock.rate()}
                book.write(done, 'train', {**smooth, **rate, 'memory_gb': peak_memory()})
                bar.set_postfix({k: f'{v:.3f}' for k, v in smooth.items() if k != 'total'})
            if run.held_out and book is not None and (done % options.validate_every == 0 or done == options.steps):
                with clock:
                    loss = _validate(objective, run, average, book, done)
                    if loss < best:
                        best = loss
                        _save(objective, run, average, folder / BEST)
            if book is not None and done % options.save_every == 0:
                with clock:
                    _save_state(folder, objective, optimizer, average, done, best, options)
            if _agreed(accelerator, stop.asked):
                stop.asked = True
                break
    interrupted = stop.asked and done < options.steps
    report = None
    if book is not None:
        if first < options.steps:
            _save_state(folder, objective, optimizer, average, done, best, options)
        _save(objective, run, average, folder / CHECKPOINT)
        book.close()
        if not interrupted:
            _describe(objective, run, average, probes, folder)
        report = write_report(folder)
    return Outcome(folder / CHECKPOINT, folder / BEST, done, best, interrupted, report)


def _describe(objective: Objective, run: Run, average: Average, probes: list[forgetting.Probe], folder: Path) -> None:
    """What the report shows of the weights that were saved."""
    average.swap(objective)
    try:
        write_predictions(predict(objective, run), folder)
        forgetting.end(run, folder, probes)
    finally:
        average.swap(objective)
        objective.train()


def _agreed(accelerator: Any, asked: bool) -> bool:
    """Whether any process was asked to stop: all have to stop after the same step."""
    if accelerator.num_processes == 1:
        return asked
    return bool(accelerator.reduce(torch.tensor(float(asked), device=accelerator.device)).item())


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
        general = run.talk(examples, rng) if k == 0 else None
        device = accelerator.device
        total, values = wrapped(batch.to(device), labels.to(device), None if general is None else general.to(device))
        accelerator.backward(total / parts)
        for name, value in {'total': total.detach(), **values}.items():
            sums[name] = sums.get(name, 0.0) + float(value) / parts
    norm = None
    if options.clip:
        norm = accelerator.clip_grad_norm_([p for g in optimizer.param_groups for p in g['params']], options.clip)
    # Before the weights change: what is saved later must never come from a step like this.
    for name, value in (('loss', sums['total']), ('gradient', 0.0 if norm is None else float(norm))):
        if not math.isfinite(value):
            raise DataError(
                f'the {name} is {value} in step {step + 1}: lower the learning rate, or look for bad data. What was '
                'saved before is good, and the same command goes on from there'
            )
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


def _check(state: dict[str, Any], objective: Objective, options: Training, folder: Path) -> None:
    """Refuse a state that is not of this run."""
    if any(k not in state for k in ('step', 'best', 'recipe', 'weights', 'average', 'average_steps', 'optimizer')):
        raise CheckpointError(
            f'{folder} holds a state without weights, optimiser or step; remove {STATE} to start over'
        )
    own = {n: tuple(p.shape) for n, p in objective.named_parameters() if p.requires_grad}
    if state['recipe'] != options.recipe or own != {n: tuple(p.shape) for n, p in state['weights'].items()}:
        raise DataError(f'{folder} holds a run of {state["recipe"]} with other weights; choose another folder')


def _restore(state: dict[str, Any], objective: Objective, optimizer: Any, average: Average) -> tuple[int, float]:
    own = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state['weights'][name])
    average.values = dict(state['average'])
    average.steps = int(state['average_steps'])
    optimizer.load_state_dict(state['optimizer'])
    return int(state['step']), float(state['best'])
