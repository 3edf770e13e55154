"""Time the fast path against the reference's order of work, side by side, on random weights."""

from __future__ import annotations

import math
import re
import resource
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import replace
from ..errors import ConfigError
from .checkpoint import materialize, parameter_shapes
from .config import ModelConfig, preset
from .device import pick_device, pick_dtype
from .fast import FastPath, lay_out_weights, merge_adapters
from .instructvla import InstructVLA
from .lora import LoraLinear
from .memory import serving_memory
from .plain import ReferenceOrder
from .static import make_engine

SENTENCE = 20
STEPS = ('bias', 'block', 'sentence', 'reuse')
IMAGE_ID = 5
ROOM = 0.8  # of the free memory that the second copy of the weights may take


@dataclass(frozen=True)
class Timing:
    """Median seconds of one step both ways.

    Attributes:
        difference: largest difference of the normalised actions. repeats: how often it was measured.
        bfloat16: the fast path in bfloat16 beside one in float32, or None. rounding: difference of those two.
    """

    step: str
    plain: float
    fast: float
    difference: float
    repeats: int
    bfloat16: float | None = None
    rounding: float | None = None

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
            'bfloat16_s': self.bfloat16,
            'bfloat16_ratio': None if self.bfloat16 is None else self.fast / self.bfloat16,
            'rounding': self.rounding,
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


def twin(model: InstructVLA, *, dtype: torch.dtype | None = None, merged: bool = False) -> InstructVLA:
    """Another model with the same weights, in another number format or with merged adapters; the rest is shared."""
    with torch.device('meta'):
        other = InstructVLA(model.config)
    state = model.state_dict()
    if merged:
        for name, module in model.named_modules():
            if isinstance(module, LoraLinear):
                state[f'{name}.weight'] = state[f'{name}.weight'].clone()
    other.load_state_dict({k: v if dtype is None else v.to(dtype) for k, v in state.items()}, assign=True)
    materialize(other, model.device)
    other.vlm.image_id = model.vlm.image_id
    if merged:
        merge_adapters(other)
    return other.eval()


def measure(
    config: ModelConfig,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    repeats: int = 5,
    sentence: int = SENTENCE,
    budget: float = math.inf,
    progress: Callable[[str], None] | None = None,
    capture: str = 'auto',
    compile: bool = False,
    only: Collection[str] = (),
    bfloat16: bool = False,
) -> list[Timing]:
    """Median times of the steps of a control loop, plain and fast alternating.

    Steps: action only under both masks, a sentence of ``sentence`` tokens with its action, and an action whose latent
    is reused every second step (against a plain path that never reuses). ``progress`` is told what is measured next.
    A step is measured ``repeats`` times, fewer (at least once) when that takes longer than ``budget`` [s].

    Args:
        capture, compile: of the fast path, see :func:`~.static.make_engine`.
        only: names of :data:`STEPS` to measure; all when empty.
        bfloat16: also time the fast path with the same weights in bfloat16.
    """
    say = progress or (lambda what: None)
    say('making the weights')
    device = device or torch.device('cpu')
    model = random_model(config, device, dtype)
    inputs = _inputs(config, device, dtype, sentence)
    plain, merged = ReferenceOrder(model), config.adapters.count == 1
    served = [twin(model, merged=merged)]
    if bfloat16:
        served.append(twin(model, dtype=torch.bfloat16, merged=merged))
    if not compile and _bytes(model) * (1.5 if bfloat16 else 1) < ROOM * free_memory():
        for other in served:  # as a policy does
            lay_out_weights(other)
    engines = [make_engine(m, capture, compile) for m in served]
    ways = {
        'bias': ('action only, bias', lambda fast: _action_only(plain, fast, inputs, 'bias')),
        'block': ('action only, block', lambda fast: _action_only(plain, fast, inputs, 'block')),
        'sentence': (f'sentence of {sentence} + action', lambda fast: _speaking(plain, fast, inputs, sentence)),
        'reuse': ('latent reused every second step', lambda fast: _reusing(plain, fast, inputs)),
    }
    found = []
    for key, (name, make) in ways.items():
        if not only or key in only:
            say(name)
            pairs = [make(fast) for fast in engines]
            found.append(_compare(name, device, repeats, budget, pairs[0][0], [quick for _, quick in pairs]))
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


def _compare(name: str, device: torch.device, repeats: int, budget: float, slow: Step, quick: Sequence[Step]) -> Timing:
    exact, *rounded = [step() for step in quick]  # also the warm-up, as the plain step is
    difference = float((slow() - exact).abs().max())
    ways = (slow, *quick)
    times: list[list[float]] = [[] for _ in ways]
    end = time.perf_counter() + budget
    for k in range(repeats):
        if k and time.perf_counter() > end:
            break
        for step, found in zip(ways, times, strict=True):
            _wait(device)
            started = time.perf_counter()
            step()
            _wait(device)
            found.append(time.perf_counter() - started)
    plain, fast, *others = map(statistics.median, times)
    rounding = float((rounded[0] - exact).abs().max()) if rounded else None
    return Timing(name, plain, fast, difference, len(times[1]), others[0] if others else None, rounding)


def _bytes(model: InstructVLA) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def free_memory() -> int:
    """Bytes of main memory that programs can still have (Linux; elsewhere unknown, and therefore 0)."""
    try:
        found = re.search(r'^MemAvailable:\s*(\d+) kB', Path('/proc/meminfo').read_text(encoding='utf-8'), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) * 1024 if found else 0


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


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in its vector or tile units (x86 on Linux; elsewhere not known)."""
    try:
        flags = re.search(r'^flags\s*:(.*)$', Path('/proc/cpuinfo').read_text(encoding='utf-8'), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and not {'avx512_bf16', 'amx_bf16'}.isdisjoint(flags.group(1).split())


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
    capture: str = 'auto',
    compile: bool = False,
    only: Collection[str] = (),
) -> dict[str, Any]:
    """:func:`measure` of a preset, with device and number format by name, as plain data for JSON.

    Args:
        device: 'auto', 'cpu', 'cuda', ... dtype: 'float32', 'bfloat16', 'both' (the fast path in bfloat16 as well), or
            'auto': bfloat16 on a GPU, both at medium size on a CPU with instructions for it, otherwise float32.
        budget, capture, compile, only: see :func:`measure`.
        threads: of torch on a CPU; 0: as many as there are cores.

    Raises:
        ConfigError: unknown preset, stage, device or number format.
    """
    if stage not in (1, 2):
        raise ConfigError(f'stage {stage}: the model is trained in stages 1 and 2')
    config, place = with_stage(preset(size), stage), pick_device(device)
    if dtype == 'auto' and place.type == 'cpu' and size == 'medium' and fast_bfloat16():
        dtype = 'both'
    number, before = pick_dtype('float32' if dtype == 'both' else dtype, place), torch.get_num_threads()
    torch.set_num_threads(threads or before)
    if place.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(place)
    try:
        used = torch.get_num_threads()
        timings = measure(
            config,
            device=place,
            dtype=number,
            repeats=repeats,
            budget=budget,
            progress=progress,
            capture=capture,
            compile=compile,
            only=only,
            bfloat16=dtype == 'both',
        )
    finally:
        torch.set_num_threads(before)
    served = torch.bfloat16 if dtype == 'both' else number
    memory: dict[str, Any] = {'dtype': _name(served), 'computed': serving_memory(config, served)}
    # Of the process, both paths and everything before; and what the GPU held of it.
    memory['process_peak'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if place.type == 'cuda':
        memory['gpu_peak'] = torch.cuda.max_memory_allocated(place)
    return {
        'size': size,
        'stage': stage,
        'parameters': sum(math.prod(shape) for shape in parameter_shapes(config).values()),
        'device': torch.cuda.get_device_name(place) if place.type == 'cuda' else str(place),
        'dtype': _name(number),
        'threads': used,
        'capture': capture,
        'compile': compile,
        'memory': memory,
        'steps': [t.to_dict() for t in timings],
    }


def _name(number: torch.dtype) -> str:
    return str(number).removeprefix('torch.')
