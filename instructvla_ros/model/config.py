"""Sizes and variants of the model: one frozen tree, loaded from ``config/model/<preset>.yaml`` or a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import load, option
from ..errors import ConfigError, SetupError, suggest
from ..resources import config_file

PRESETS = ('eagle2_2b', 'medium', 'tiny')
RECIPES = ('stage0', 'stage1', 'stage2', 'scratch', 'onsite')
"""What can be trained: :func:`~instructvla_ros.model.trainable.set_trainable`."""
STEMS = ('patch', 'conv')
CONV_STRIDE = 8
"""Pixels per cell of the convolutional stem before its last layer; patches are a multiple of it."""
ADAPTED = (
    'self_attn.q_proj',
    'self_attn.k_proj',
    'self_attn.v_proj',
    'self_attn.o_proj',
    'mlp.up_proj',
    'mlp.down_proj',
)  # gate_proj is not adapted (specification 4.1)


@dataclass(frozen=True)
class Vision:
    """SigLIP tower."""

    hidden_size: int = option(1152, 'token width', ge=4)
    intermediate_size: int = option(4304, 'MLP width', ge=4)
    layers: int = option(27, 'encoder layers', ge=1)
    heads: int = option(16, 'attention heads', ge=1)
    image_size: int = option(448, 'side of the square input', unit='px', ge=28)
    patch_size: int = option(14, 'side of a patch', unit='px', ge=1)
    stem: str = option('patch', "'patch' as released; 'conv' for small models trained from scratch", choices=STEMS)
    layer_norm_eps: float = option(1e-6, 'epsilon of the layer norms')

    def __post_init__(self) -> None:
        _divides('vision', 'hidden_size', self.hidden_size, 'heads', self.heads)
        _check_stem('vision', self.stem, self.patch_size)
        if self.image_size % (2 * self.patch_size):
            raise ConfigError(
                f'vision: image_size {self.image_size} must be a multiple of two patches ({2 * self.patch_size} px)'
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def image_tokens(self) -> int:
        """Tokens per image after the pixel shuffle."""
        return (self.grid // 2) ** 2


@dataclass(frozen=True)
class Language:
    """Qwen2 decoder. ``vocab_size`` does not count the latent queries."""

    vocab_size: int = option(151674, 'rows of the tokenizer without the latent queries', ge=8)
    hidden_size: int = option(1536, 'token width', ge=4)
    intermediate_size: int = option(8960, 'MLP width', ge=4)
    layers: int = option(28, 'decoder layers', ge=1)
    heads: int = option(12, 'query heads', ge=1)
    kv_heads: int = option(2, 'key and value heads', ge=1)
    rope_theta: float = option(1e6, 'base of the rotary frequencies', ge=1.0)
    rms_norm_eps: float = option(1e-6, 'epsilon of the RMS norms')
    rope_bf16: bool = option(
        False, 'round the rotary frequencies to bf16 as the released evaluation does; training did not (spec. 3.5)'
    )

    def __post_init__(self) -> None:
        _divides('language', 'hidden_size', self.hidden_size, 'heads', self.heads)
        _divides('language', 'heads', self.heads, 'kv_heads', self.kv_heads)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.heads


@dataclass(frozen=True)
class Adapters:
    """LoRA of the decoder: none, one (stage 1), or two with a per-token gate (stage 2)."""

    count: int = option(1, '0 plain decoder, 1 stage 1, 2 stage 2: language and action experts', ge=0, le=2)
    rank: int = option(128, 'rank of one adapter', ge=1)
    alpha: float = option(256.0, 'scale = alpha / rank')
    dropout: float = option(0.05, 'on the adapter input, training only', ge=0.0, le=0.9)
    gate_depth: int = option(4, 'linear layers of the gate', ge=1, le=16)
    gate_size: int = option(128, 'width of the gate', ge=1)
    gate_dropout: float = option(0.2, 'in the gate, training only', ge=0.0, le=0.9)

    @property
    def scale(self) -> float:
        """Factor of the adapter branch."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Dino:
    """DINOv2 with registers, FiLM-conditioned by the mean latent. Only blocks 0 .. ``tap_block`` are built."""

    width: int = option(1024, 'token width', ge=4)
    depth: int = option(24, 'blocks a released checkpoint holds; those after the tap influence nothing', ge=1)
    heads: int = option(16, 'attention heads', ge=1)
    image_size: int = option(224, 'side of the square input', unit='px', ge=14)
    patch_size: int = option(14, 'side of a patch', unit='px', ge=1)
    stem: str = option('patch', "'patch' as released; 'conv' for small models trained from scratch", choices=STEMS)
    registers: int = option(4, 'register tokens', ge=0)
    tap_block: int = option(2, 'index of the block whose output is the feature (specification 5.2)', ge=0)

    def __post_init__(self) -> None:
        _divides('dino', 'width', self.width, 'heads', self.heads)
        _divides('dino', 'image_size', self.image_size, 'patch_size', self.patch_size)
        _check_stem('dino', self.stem, self.patch_size)
        if self.tap_block >= self.depth:
            raise ConfigError(f'dino: tap_block {self.tap_block} must be below depth {self.depth}')

    @property
    def patches(self) -> int:
        """Feature tokens per view."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class Expert:
    """Flow-matching action expert (Llama without embedding and head)."""

    hidden_size: int = option(768, 'token width', ge=4)
    intermediate_size: int = option(3072, 'MLP width', ge=4)
    layers: int = option(12, 'decoder layers', ge=1)
    heads: int = option(12, 'attention heads', ge=1)
    rope_theta: float = option(1000.0, 'base of the rotary frequencies', ge=1.0)
    rms_norm_eps: float = option(1e-6, 'epsilon of the RMS norms')
    dropout: float = option(0.1, 'of the attention, training only', ge=0.0, le=0.9)
    mask: str = option(
        'bias',
        "'bias' adds 1 to the scores of allowed pairs (released code), 'block' forbids the others (specification 5.6)",
        choices=('bias', 'block'),
    )

    def __post_init__(self) -> None:
        _divides('expert', 'hidden_size', self.hidden_size, 'heads', self.heads)
        if self.hidden_size % 4:
            raise ConfigError(f'expert: hidden_size {self.hidden_size} must be a multiple of 4')


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the parameters and the arithmetic of one InstructVLA model."""

    name: str = option('eagle2_2b', 'preset or checkpoint this came from')
    vision: Vision = option(Vision, 'SigLIP tower')
    language: Language = option(Language, 'Qwen2 decoder')
    adapters: Adapters = option(Adapters, 'LoRA and gate')
    dino: Dino = option(Dino, 'FiLM-DINOv2')
    expert: Expert = option(Expert, 'action expert')
    queries: int = option(64, 'latent query tokens', ge=1, le=1024)
    horizon: int = option(16, 'steps of a chunk', ge=1, le=128)
    views: int = option(1, 'cameras', ge=1, le=8)
    proprio: bool = option(False, 'a token for the 8 numbers of the arm state')
    euler_steps: int = option(10, 'integration steps of the flow where the settings ask for none', ge=1, le=100)
    max_new_tokens: int = option(50, 'longest sentence', ge=1, le=4096)
    reasons: bool = option(False, 'speaks before it acts unless told otherwise')
    response: str = option(
        'clean',
        "how a sentence enters the action prompt: 'clean' as in training, 'reference' as the released code "
        '(trailing blank and control tokens kept, specification 1.6)',
        choices=('clean', 'reference'),
    )

    @property
    def stage(self) -> int:
        """1: one adapter (or none); 2: two gated adapters."""
        return 2 if self.adapters.count == 2 else 1

    @property
    def prefix_length(self) -> int:
        """Tokens of the action expert before the action steps."""
        return self.dino.patches * self.views + self.queries + int(self.proprio)


def preset(name: str) -> ModelConfig:
    """Read ``config/model/<name>.yaml``, or a YAML file given by path.

    Raises:
        ConfigError: no such preset.
    """
    try:
        file = config_file(name if name.endswith('.yaml') else f'model/{name}.yaml')
    except SetupError:
        raise ConfigError(f'no model preset {name!r}.{suggest(name, PRESETS)}') from None
    return load(ModelConfig, file)


def _divides(where: str, whole_name: str, whole: int, part_name: str, part: int) -> None:
    if whole % part:
        raise ConfigError(f'{where}: {whole_name} {whole} must be a multiple of {part_name} {part}')


def _check_stem(where: str, stem: str, patch: int) -> None:
    if stem == 'conv':
        _divides(where, 'patch_size', patch, 'the stride of the conv stem', CONV_STRIDE)
