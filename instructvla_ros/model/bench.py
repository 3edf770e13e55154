"""Time the fast path against the reference's order of work, side by side, on random weights."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import replace
from ..errors import ConfigError
from .checkpoint import materialize, parameter_shapes
from .config import ModelConfig, preset
from .fast import FastPath, merge_adapters
from .instructvla import InstructVLA
from .plain import ReferenceOrder
from .policy import pick_device, pick_dtype

SENTENCE = 20
IMAGE_ID = 5


@dataclass(frozen=True)
class Timing:
    """Median seconds of one step both ways.

    Attributes:
        difference: largest difference of the normalised actions. repeats: how often it was measured.
    """

    step: str
    plain: float
    fast: float
    difference: float
    repeats: int

    @property
    def ratio(self) -> float:
        """How many times faster."""
        return self.plain / self.fast

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            'step': self.step,
            'plain_s': self.plain,
            'fast_s': self.fast,
            'ratio': self.ratio,
            'difference': self.difference,
            'repeats': self.repeats,
        }


@dataclass(frozen=True)
class _Inputs:
    pixels: Tensor
    views: Tensor
    proprio: Tensor | None
    noise: Tensor
    question: Tensor
    action: Tensor
    spoken: Tensor


def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> InstructVLA:
    """Model in evaluation mode with random weights, adapters included; made tensor by tensor in ``dtype``."""
    generator = torch.Generator(device=device).manual_seed(0)
    # Billions of draws take minutes on a CPU: one long block of them is repeated. Its length is a prime, so that
    # the rows of a matrix do not repeat.
    block = torch.randn(4_000_037, generator=generator, device=device, dtype=dtype)
    with torch.device('meta'):
        model = InstructVLA(config)
    state = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:  # norms and scales 1, biases 0
            value = 0.0 if name.endswith('bias') else 1.0
            state[name] = torch.full(shape, value, device=device, dtype=dtype)
        else:
            # Variance-preserving, so that a difference between the paths would show in the actions.
            scale = math.prod(shape[1:]) ** -0.5
            count = math.prod(shape)
            state[name] = (block.repeat(-(-count // len(block)))[:count] * scale).view(shape)
    model.load_state_dict(state, assign=True)
    materialize(model, device)
    model.vlm.image_id = IMAGE_ID
    return model.eval()


def measure(
    config: ModelConfig,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    repeats: int = 5,
    sentence: int = SENTENCE,
    budget: float = math.inf,
    progress: Callable[[str], None] | None = None,
) -> list[Timing]:
    """Median times of the steps of a control loop, plain and fast alternating.

    Steps: action only under both masks, a sentence of ``sentence`` tokens with its action, and an action whose latent
    is reused every second step (against a plain path that never reuses). ``progress`` is told what is measured next.
    A step is measured ``repeats`` times, fewer (at least once) when that takes longer than ``budget`` [s].
    """
    say = progress or (lambda what: None)
    say('making the weights')
    device = device or torch.device('cpu')
    model = random_model(config, device, dtype)
    inputs = _inputs(config, device, dtype, sentence)
    plain, fast = ReferenceOrder(model), FastPath(model)
    if config.stage == 1 and config.adapters.count:
        merged = random_model(config, device, dtype)
        merge_adapters(merged)
        fast = FastPath(merged)
    steps = {f'action only, {mask}': _action_only(plain, fast, inputs, mask) for mask in ('bias', 'block')}
    steps[f'sentence of {sentence} + action'] = _speaking(plain, fast, inputs, sentence)
    steps['latent reused every second step'] = _reusing(plain, fast, inputs)
    found = []
    for name, (slow, quick) in steps.items():
        say(name)
        found.append(_compare(name, device, repeats, budget, slow, quick))
    return found


Step = Callable[[], Tensor]


def _action_only(plain: ReferenceOrder, fast: FastPath, at: _Inputs, mask: str | None) -> tuple[Step, Step]:
    def slow() -> Tensor:
        return plain.chunk(plain.latent(at.pixels, at.action), at.views, at.proprio, at.noise, mask=mask)

    def quick() -> Tensor:
        latent = fast.latent(fast.begin(at.pixels), at.action)
        return fast.chunk(latent, at.views, at.proprio, at.noise, mask=mask)

    return slow, quick


def _speaking(plain: ReferenceOrder, fast: FastPath, at: _Inputs, limit: int) -> tuple[Step, Step]:
    # Random weights say random words: the action pass reads a fixed sentence of the same length instead.
    def slow() -> Tensor:
        plain.sentence(at.pixels, at.question, end_id=-1, limit=limit)
        return plain.chunk(plain.latent(at.pixels, at.spoken), at.views, at.proprio, at.noise)

    def quick() -> Tensor:
        session = fast.begin(at.pixels)
        fast.sentence(session, at.question, end_id=-1, limit=limit)
        return fast.chunk(fast.latent(session, at.spoken), at.views, at.proprio, at.noise)

    return slow, quick


def _reusing(plain: ReferenceOrder, fast: FastPath, at: _Inputs) -> tuple[Step, Step]:
    one_slow, one_quick = _action_only(plain, fast, at, None)

    def slow() -> Tensor:
        one_slow()
        return one_slow()

    def quick() -> Tensor:
        latent = fast.latent(fast.begin(at.pixels), at.action)
        fast.chunk(latent, at.views, at.proprio, at.noise)
        return fast.chunk(latent, at.views, at.proprio, at.noise)

    return slow, quick


def _compare(name: str, device: torch.device, repeats: int, budget: float, slow: Step, quick: Step) -> Timing:
    difference = float((slow() - quick()).abs().max())  # also the warm-up of both
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + budget
    for k in range(repeats):
        if k and time.perf_counter() > end:
            break
        for step, found in zip((slow, quick), times, strict=True):
            _wait(device)
            started = time.perf_counter()
            step()
            _wait(device)
            found.append(time.perf_counter() - started)
    return Timing(name, statistics.median(times[0]), statistics.median(times[1]), difference, len(times[1]))


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _inputs(config: ModelConfig, device: torch.device, dtype: torch.dtype, sentence: int) -> _Inputs:
    g = torch.Generator().manual_seed(1)
    vocab, tokens = config.language.vocab_size, config.vision.image_tokens
    words = lambda n: torch.randint(6, vocab, (n,), generator=g)  # noqa: E731
    # The lengths of specification 1.5: 15 tokens before the image, about 21 after it, queries, 2 at the end.
    head = torch.cat((words(15), torch.full((tokens,), IMAGE_ID), words(26)))
    queries, end = torch.arange(vocab, vocab + config.queries), words(2)
    size, dino = config.vision.image_size, config.dino.image_size
    prompts = (head, torch.cat((head, queries, end)), torch.cat((head, words(sentence), queries, end)))
    question, action, spoken = (p[None].to(device) for p in prompts)
    return _Inputs(
        torch.randn(1, 3, size, size, generator=g).to(device, dtype),
        torch.randn(1, config.views, 3, dino, dino, generator=g).to(device, dtype),
        torch.rand(1, 8, generator=g).to(device) if config.proprio else None,
        torch.randn(1, config.horizon, 7, generator=g).to(device),
        question,
        action,
        spoken,
    )


def with_stage(config: ModelConfig, stage: int) -> ModelConfig:
    """Same sizes with the adapters of a stage."""
    return replace(config, adapters=replace(config.adapters, count=stage))


def measure_preset(
    size: str,
    stage: int,
    *,
    device: str = 'auto',
    dtype: str = 'auto',
    repeats: int = 5,
    budget: float = math.inf,
    threads: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """:func:`measure` of a preset, with device and number format by name, as plain data for JSON.

    Args:
        device: 'auto', 'cpu', 'cuda', ... dtype: 'float32', 'bfloat16', or 'auto' (bfloat16 on a GPU).
        budget: see :func:`measure`. threads: of torch on a CPU; 0: as many as there are cores.

    Raises:
        ConfigError: unknown preset, stage, device or number format.
    """
    if stage not in (1, 2):
        raise ConfigError(f'stage {stage}: the model is trained in stages 1 and 2')
    config, place = with_stage(preset(size), stage), pick_device(device)
    number, before = pick_dtype(dtype, place), torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        used = torch.get_num_threads()
        timings = measure(config, device=place, dtype=number, repeats=repeats, budget=budget, progress=progress)
    finally:
        torch.set_num_threads(before)
    return {
        'size': size,
        'stage': stage,
        'parameters': sum(math.prod(shape) for shape in parameter_shapes(config).values()),
        'device': torch.cuda.get_device_name(place) if place.type == 'cuda' else str(place),
        'dtype': str(number).removeprefix('torch.'),
        'threads': used,
        'steps': [t.to_dict() for t in timings],
    }
