"""Which mask was a checkpoint trained with? The flow loss on its own data tells (specification 5.6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..datatypes import Image
from ..errors import CheckpointError
from ..geometry import Array
from .checkpoint import Bundle
from .fast import FastPath
from .flow import interpolate, target_velocity
from .images import dino_pixels, join_views, siglip_pixels

TIMES = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Sample:
    """One frame of an episode with the steps that followed.

    Attributes:
        views: uint8 RGB in the order of the model. proprio: (8,) physical units. steps: (H, 7) physical units.
    """

    views: tuple[Image, ...]
    proprio: Array
    instruction: str
    steps: Array


@dataclass(frozen=True)
class MaskChoice:
    """Result: mean flow loss per mask, and how sure it is.

    Attributes:
        losses: mask -> mean loss. margin: mean difference in standard errors, paired over samples; under about 3 the
            data do not tell.
    """

    losses: Mapping[str, float]
    margin: float
    samples: int

    @property
    def best(self) -> str:
        """Mask with the lower loss."""
        return min(self.losses, key=lambda m: self.losses[m])

    @property
    def clear(self) -> bool:
        """The difference is far outside the noise."""
        return self.margin >= 3.0


@torch.no_grad()
def choose_mask(bundle: Bundle, samples: Iterable[Sample], dataset: str = '', seed: int = 0) -> MaskChoice:
    """Flow loss under both masks with the same noise and the same times.

    Raises:
        CheckpointError: no samples, or samples that do not fit the model.
    """
    statistics, model, config = bundle.dataset(dataset), bundle.model, bundle.config
    engine, generator = FastPath(model), torch.Generator().manual_seed(seed)
    losses: dict[str, list[float]] = {'bias': [], 'block': []}
    for sample in samples:
        if len(sample.views) < config.views or sample.steps.shape[0] < config.horizon:
            raise CheckpointError(
                f'the model needs {config.views} views and {config.horizon} steps per sample, '
                f'got {len(sample.views)} and {sample.steps.shape[0]}'
            )
        frames = sample.views[: config.views]
        pixels = torch.from_numpy(siglip_pixels(join_views(frames), config.vision.image_size))[None]
        views = torch.from_numpy(np.stack([dino_pixels(f, config.dino.image_size) for f in frames]))[None]
        ids = torch.from_numpy(bundle.prompts.action(sample.instruction))[None]
        latent = engine.latent(engine.begin(pixels.to(model.device)), ids.to(model.device))
        proprio = None
        if config.proprio:
            proprio = _tensor(statistics.normalize_proprio(sample.proprio), model.device)[None]
        prefix = model.expert.prefix(latent, views.to(model.device), proprio)
        actions = _tensor(statistics.normalize(sample.steps[: config.horizon]), model.device)
        count = len(TIMES)
        times = torch.tensor(TIMES, device=model.device)
        noise = model.noise(count, generator)
        actions = actions.expand(count, -1, -1)
        for mask, values in losses.items():
            points = interpolate(noise, actions, times)
            velocity = model.expert.velocity(prefix.expand(count, -1, -1), points, times, mask)
            values.append(float(((velocity - target_velocity(noise, actions)) ** 2).mean()))
    found = {m: np.asarray(v) for m, v in losses.items()}
    count = len(found['bias'])
    if count == 0:
        raise CheckpointError('there are no samples to choose the mask with')
    difference = found['bias'] - found['block']
    spread = difference.std(ddof=1) / np.sqrt(count) if count > 1 else float('inf')
    margin = abs(difference.mean()) / max(float(spread), 1e-12)
    return MaskChoice({m: float(v.mean()) for m, v in found.items()}, float(margin), count)


def _tensor(values: Array, device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32)).to(device)
