"""The training loop: accelerate underneath, progress shown, interruptible, exact to the step when it goes on."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..errors import CheckpointError, DataError
from ..model.checkpoint import save
from ..model.frozen import pack_frozen
from . import forgetting
from .grounding import word_ids
from .objective import Objective
from .optimizer import check_optimizer, make_optimizer
from .pacing import Clock, Stop
from .parallel import Team
from .precision import compute_alike
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
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    team = Team(options.sharded)
    check_optimizer(options, team.sharded)
    torch.manual_seed(options.seed)
    with team.accelerator.main_process_first():  # it makes the caches that the others read
        run = prepare(options, folder, progress and team.first)
    objective = Objective(run.bundle.model, options, word_ids(run.bundle.prompts)).train()
    objective.model.checkpoint_activations(options.checkpoint_activations)
    state = load_state(folder)
    if state:
        _check(state, objective, options, folder)
    probes: list[forgetting.Probe] = []
    if team.first:
        write_facts(run, folder)
        probes = forgetting.begin(run, folder, team.device)
    if state:
        _restore_weights(state, objective)
    if team.device.type == 'cpu' and not options.sharded:
        pack_frozen(run.bundle.model)
    module = team.take(objective)
    if options.checkpoint_activations and module.mixed and team.device.type == 'cpu':
        for decoder in (module.model.vlm.decoder, module.model.expert.decoder):
            decoder._layer = compute_alike(decoder._layer)  # type: ignore[method-assign]
    optimizer = make_optimizer(module, options)
    average = Average(module, options.ema)
    first, best = _restore(state, team, optimizer, average) if state else (0, math.inf)
    wrapped, optimizer = team.prepare(optimizer)
    average.values = {k: v.to(team.device) for k, v in average.values.items()}
    book = Log(folder, first) if team.first else None
    done = first
    bar = tqdm(
        total=options.steps, initial=first, desc=options.recipe, unit='step', disable=not progress or book is None
    )
    smooth: dict[str, float] = {}
    samples = options.batch * team.size
    clock, stop = Clock(), Stop()
    with bar, stop:
        for step in range(first, options.steps):
            parts = _step(wrapped, optimizer, team, run, step)
            average.update(module)
            done = step + 1
            for name, value in parts.items():
                smooth[name] = value if name not in smooth else 0.98 * smooth[name] + 0.02 * value
            bar.update()
            clock.tick()
            last = done == options.steps
            if done % 20 == 0 or last:
                told = team.mean(smooth)
                if book is not None:
                    rate = {'lr': learning_rate(options, step), 'samples_per_s': samples * clock.rate()}
                    book.write(done, 'train', {**told, **rate, 'memory_gb': peak_memory()})
                    bar.set_postfix({k: f'{v:.3f}' for k, v in told.items() if k != 'total'})
            if run.held_out and (done % options.validate_every == 0 or last):
                with clock, team.averaged(average) as plain:
                    if plain is not None and book is not None:
                        loss = _validate(plain, run, book, done)
                        if loss < best:
                            best = loss
                            _save(plain, run, folder / BEST)
            if done % options.save_every == 0 and not last:
                with clock:
                    _save_state(folder, team, optimizer, average, done, best, options)
            if team.any(stop.asked):
                stop.asked = True
                break
    interrupted = stop.asked and done < options.steps
    report = None
    if first < options.steps:
        _save_state(folder, team, optimizer, average, done, best, options)
    with team.averaged(average) as plain:
        if plain is not None and book is not None:
            _save(plain, run, folder / CHECKPOINT)
            book.close()
            if not interrupted:
                write_predictions(predict(plain, run), folder)
                forgetting.end(run, folder, probes)
            report = write_report(folder)
    return Outcome(folder / CHECKPOINT, folder / BEST, done, best, interrupted, report)


def _step(wrapped: Any, optimizer: Any, team: Team, run: Run, step: int) -> dict[str, float]:
    """One optimiser step. All that is random follows from seed, step and part.

    Parts are counted over all processes: two processes make the step that one makes with twice the batch in two parts.
    """
    options = run.options
    for group in optimizer.param_groups:
        group['lr'] = learning_rate(options, step)
    optimizer.zero_grad()
    sums: dict[str, float] = {}
    parts = options.accumulate
    for k in range(parts):
        part = team.accelerator.process_index * parts + k
        rng = np.random.default_rng([options.seed, step, part])
        torch.manual_seed(options.seed * 1_000_003 + step + 1_000_000_007 * part)
        examples = run.pick(rng)
        if team.sharded:  # processes have to run the same layers, so they agree on a dataset
            examples = run.pick(np.random.default_rng([options.seed, step, k]))
        batch, labels = examples.draw(rng, max(1, options.batch // parts))
        general = run.talk(examples, rng, -(-options.general_batch // parts))
        if team.sharded and team.any(general is None):
            general = None
        device = team.device
        total, values = wrapped(batch.to(device), labels.to(device), None if general is None else general.to(device))
        team.accelerator.backward(total / parts)
        for name, value in {'total': total.detach(), **values}.items():
            sums[name] = sums.get(name, 0.0) + float(value) / parts
    norm = team.clip(optimizer, options.clip) if options.clip else 0.0
    # Before the weights change: what is saved later must never come from a step like this.
    for name, number in (('loss', sums['total']), ('gradient', norm)):
        if not math.isfinite(number):
            raise DataError(
                f'the {name} is {number} in step {step + 1}: lower the learning rate, or look for bad data. What was '
                'saved before is good, and the same command goes on from there'
            )
    optimizer.step()
    return sums


def _validate(objective: Objective, run: Run, book: Log, step: int) -> float:
    options = run.options
    part = max(1, options.batch // options.accumulate)  # what is known to fit into memory
    each = [validate(objective, e, options.validation_frames, part) for e in run.held_out]
    values = {k: float(np.mean([e[k] for e in each if k in e])) for k in {k for e in each for k in e}}
    loss = sum(values.get(k, 0.0) for k in ('flow', 'ce', 'pointing'))
    book.write(step, 'validation', {**values, 'loss': loss})
    log.info('step %d: %s', step, ', '.join(f'{k} {v:.4g}' for k, v in sorted(values.items())))
    return loss


def _save(objective: Objective, run: Run, folder: Path) -> None:
    objective.eval()
    save(run.bundle, folder, origin=run.options.init, overwrite=True)


def _save_state(
    folder: Path, team: Team, optimizer: Any, average: Average, step: int, best: float, options: Training
) -> None:
    inner = getattr(optimizer, 'optimizer', optimizer)
    trained = {n: p.detach() for n, p in team.module.named_parameters() if p.requires_grad}
    content = team.whole({'weights': trained, 'average': average.values, 'optimizer': inner.state_dict()})
    if team.first:
        facts = {'step': step, 'best': best, 'recipe': options.recipe, 'average_steps': average.steps}
        save_state(folder, {**facts, 'moved_by': options.optimizer, **content})


def _check(state: dict[str, Any], objective: Objective, options: Training, folder: Path) -> None:
    """Refuse a state that is not of this run."""
    if any(k not in state for k in ('step', 'best', 'recipe', 'weights', 'average', 'average_steps', 'optimizer')):
        raise CheckpointError(
            f'{folder} holds a state without weights, optimiser or step; remove {STATE} to start over'
        )
    own = {n: tuple(p.shape) for n, p in objective.named_parameters() if p.requires_grad}
    if state['recipe'] != options.recipe or own != {n: tuple(p.shape) for n, p in state['weights'].items()}:
        raise DataError(f'{folder} holds a run of {state["recipe"]} with other weights; choose another folder')
    if (moved_by := state.get('moved_by', 'adamw')) != options.optimizer:
        raise DataError(
            f'{folder} holds a run with optimizer {moved_by}, not {options.optimizer}: set optimizer={moved_by} '
            'to go on, or choose another folder'
        )


def _restore_weights(state: dict[str, Any], objective: Objective) -> None:
    own = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state['weights'][name])


def _restore(
    state: dict[str, Any], team: Team, optimizer: torch.optim.Optimizer, average: Average
) -> tuple[int, float]:
    """Optimiser, average, step and best loss; the state holds whole tensors, whatever number of processes wrote it."""
    own = dict(team.module.named_parameters())
    average.values = {n: team.place(v, own[n]) for n, v in state['average'].items()}
    average.steps = int(state['average_steps'])
    parameters = [p for g in optimizer.param_groups for p in g['params']]
    for index, entry in state['optimizer']['state'].items():
        for name, value in entry.items():
            if isinstance(value, torch.Tensor) and value.dim():
                entry[name] = team.place(value, parameters[index])
    optimizer.load_state_dict(state['optimizer'])
    return int(state['step']), float(state['best'])
