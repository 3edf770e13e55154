"""How good a model is on held-out episodes: losses, where it points, and where its chunks end."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..geometry import Array
from ..model.flow import integrate
from ..model.images import dino_scale, siglip_scale
from ..model.instructvla import Batch
from .examples import Examples, Labels
from .grounding import pick
from .objective import Objective

EULER_STEPS = 10


@torch.no_grad()
def validate(objective: Objective, examples: Examples, frames: int, batch: int) -> dict[str, float]:
    """Means over ``frames`` frames, always the same ones.

    Returns:
        The parts of the loss; ``named``: share of first views in which the pointer is nearer to the asked object than
        to any other; ``end_mm``: median distance between the ends of predicted and recorded chunks [mm]; ``gripper``:
        share of steps with the right gripper command; ``mean_mm``: the same distance for the mean chunk.
    """
    objective.eval()
    rng = np.random.default_rng(12345)
    device = objective.model.device
    sums: dict[str, list[float]] = {}
    ends: list[float] = []
    means: list[float] = []
    grips: list[float] = []
    typical = None
    if examples.statistics is not None and examples.store.has_actions and not examples.options.retell:
        typical = np.asarray(examples.store.actions[examples.rows][:, :, :3].sum(1).mean(0))
    done = 0
    while done < frames:
        count = min(batch, frames - done)
        rows = examples.rows[rng.integers(len(examples.rows), size=count)]
        done += count
        data, labels = examples.batch(rows, rng)
        data, labels = data.to(device), labels.to(device)
        _, parts = objective(data, labels)
        if objective.grounding is not None and data.views is not None:
            parts['named'] = named(objective, data, labels)
        for name, value in parts.items():
            sums.setdefault(name, []).append(float(value))
        if typical is None:
            continue
        steps = act(objective, examples, rows, rng)
        wanted = np.asarray(examples.store.actions[rows], np.float64)
        valid = examples.store.valid[rows][..., None]
        error = ((steps - wanted) * valid)[:, :, :3].sum(1)
        ends += list(np.linalg.norm(error, axis=1))
        means += list(np.linalg.norm(typical - (wanted * valid)[:, :, :3].sum(1), axis=1))
        grips.append(float(((steps[..., 6] > 0.5) == (wanted[..., 6] > 0.5)).mean()))
    objective.train()
    out = {k: float(np.nanmean(v)) for k, v in sums.items()}
    if ends:
        out.update(
            end_mm=1000 * float(np.median(ends)), mean_mm=1000 * float(np.median(means)), gripper=float(np.mean(grips))
        )
    return out


def act(objective: Objective, examples: Examples, rows: Array, rng: np.random.Generator) -> Array:
    """Chunks (n, H, 7) in physical units for the plain instruction of frames, ten Euler steps."""
    return drawn(objective, examples, rows, rng, 1)[0]


@torch.no_grad()
def drawn(
    objective: Objective, examples: Examples, rows: Array, rng: np.random.Generator, draws: int, scale: float = 1.0
) -> Array:
    """Chunks (draws, n, H, 7) as :func:`act`, one for each draw of the noise; what is seen is computed once.

    Args:
        scale: of the noise; with 0 one draw says all.
    """
    model, store, statistics = objective.model, examples.store, examples.statistics
    assert statistics is not None
    data, _ = examples.batch(rows, rng, plain=True)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    proprio = None
    if model.config.proprio:
        proprio = torch.from_numpy(statistics.normalize_proprio(store.proprio[rows]).astype(np.float32)).to(
            model.device
        )
    pixels = torch.from_numpy(siglip_scale(np.array(store.joined[rows]))).to(model.device)
    views = torch.from_numpy(dino_scale(np.array(store.views[rows]))).to(model.device)
    latent = model.latent(data.ids.to(model.device), pixels)
    prefix = model.expert.prefix(latent, views, proprio)
    found = []
    for _ in range(draws):
        noise = scale * model.noise(len(rows), generator)
        raw = integrate(lambda x, t: model.expert.velocity(prefix, x, t, None), noise, EULER_STEPS, None)
        found.append(statistics.unnormalize(statistics.finish(raw.float().cpu().numpy())))
    return np.asarray(found)


def named(objective: Objective, data: Batch, labels: Labels) -> Tensor:
    """Share of frames whose target is in the first view and nearest to the pointer of all objects; nan without any."""
    assert objective.grounding is not None
    losses = objective.model(data)
    maps = objective.grounding.maps(losses.features)[:, 0, 0]
    n = maps.shape[-1]
    best = maps.flatten(1).argmax(-1)
    found = torch.stack(((best % n + 0.5) / n, (best // n + 0.5) / n), dim=-1)
    points = labels.crops[:, 0]
    distance = (points - found[:, None]).norm(dim=-1).nan_to_num(9.0)
    target = pick(labels.crops[:, :1], labels.target)[:, 0]
    known = ~target.isnan().any(-1)
    right = distance.argmin(-1) == labels.target
    return (right & known).float().sum() / known.float().sum().clamp(min=1e-9)
