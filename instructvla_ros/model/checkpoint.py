"""Load and save models: released run directories, and our own format (safetensors and plain text).

Our format is a folder with ``model.safetensors``, ``config.json``, ``dataset_statistics.json``,
``tokenizer/tokenizer.json`` and ``README.md``. It is written beside the target and moved into place when complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import from_dict, to_dict
from ..errors import CheckpointError, ConfigError
from ..resources import local_checkpoint, shipped_models
from .config import ModelConfig
from .instructvla import InstructVLA
from .prompt import PromptEncoder
from .sizes import infer_config, with_mask
from .statistics import Statistics, read_statistics
from .tensors import assemble, cast, check_names, check_released, read_torch_file
from .tokenizer import load_tokenizer

FORMAT = 'instructvla_ros/1'
WEIGHTS, CONFIG, STATISTICS = 'model.safetensors', 'config.json', 'dataset_statistics.json'
ARCHITECTURES = ('architecture.json', 'tiny_architecture.json')


@dataclass
class Bundle:
    """A model with what belongs to it.

    Attributes:
        statistics: content of ``dataset_statistics.json``. revision: names these weights.
        unused: tensors of the file that are not part of the model.
    """

    model: InstructVLA
    prompts: PromptEncoder
    statistics: dict[str, Any]
    revision: str
    tokenizer_file: Path
    unused: tuple[str, ...] = ()

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        return self.model.config

    def dataset(self, name: str = '') -> Statistics:
        """Statistics of one dataset, with proprio when the model reads the arm state."""
        return read_statistics(self.statistics, name, proprio=self.config.proprio)


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk, checked but not yet turned into a model. ``tensors``: our names, memory-mapped."""

    config: ModelConfig
    tensors: dict[str, Tensor]
    statistics: dict[str, Any]
    tokenizer_file: Path
    revision: str
    origin: str
    unused: tuple[str, ...] = ()


def load(
    path: str | Path,
    *,
    device: str | torch.device = 'cpu',
    dtype: torch.dtype = torch.float32,
    views: int | None = None,
    mask: str | None = None,
    tokenizer: str | Path | None = None,
    revision: str = '',
) -> Bundle:
    """Load a checkpoint of either format, in evaluation mode. See :func:`open_source` for the arguments."""
    source = open_source(path, views=views, mask=mask, tokenizer=tokenizer, revision=revision)
    prompts = _prompts(source.config, source.tokenizer_file)
    with torch.device('meta'):
        model = InstructVLA(source.config)
    model.load_state_dict(cast(dict(source.tensors), dtype, device), strict=True, assign=True)
    materialize(model, device)
    model.use_tokenizer(prompts)
    return Bundle(model.eval(), prompts, source.statistics, source.revision, source.tokenizer_file, source.unused)


def create(
    config: ModelConfig, tokenizer: str | Path, statistics: Mapping[str, Any] | None = None, seed: int = 0
) -> Bundle:
    """A new model with random weights, for training from scratch."""
    tokenizer_file = _tokenizer_file(Path(tokenizer))
    prompts = _prompts(config, tokenizer_file)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InstructVLA(config)
    model.use_tokenizer(prompts)
    return Bundle(model, prompts, dict(statistics or {}), f'random-{seed}', tokenizer_file)


def open_source(
    path: str | Path,
    *,
    views: int | None = None,
    mask: str | None = None,
    tokenizer: str | Path | None = None,
    revision: str = '',
) -> Source:
    """Read and check a checkpoint without copying its tensors.

    Args:
        path: our folder, a released run directory, its ``checkpoints/*.pt``, or a hub id ``owner/name``.
        views: cameras of a released checkpoint (its file does not say).
        mask: 'bias' or 'block' instead of what the checkpoint says.
        tokenizer: folder with ``tokenizer.json`` when the run has none.
        revision: branch, tag or commit of a hub id; a folder must hold exactly this revision. '': whatever is there.

    Raises:
        CheckpointError: nothing there, damaged, of another variant or revision, or incomplete.
    """
    place = locate(path, revision)
    if place.is_dir() and (place / WEIGHTS).is_file():
        source = _open_own(place, tokenizer)
        if views is not None and views != source.config.views:
            raise CheckpointError(f'{place} is a model of {source.config.views} views, {views} were asked for')
    else:
        source = _open_released(place, views, tokenizer)
    if revision and Path(path).expanduser().exists() and revision != source.revision:
        raise CheckpointError(
            f'{place} holds revision {source.revision!r}, {revision!r} was asked for; '
            'give the folder of that revision, or leave the revision empty'
        )
    if mask is None or mask == source.config.expert.mask:
        return source
    return Source(**{**source.__dict__, 'config': with_mask(source.config, mask)})


def locate(path: str | Path, revision: str = '') -> Path:
    """Local place of a checkpoint: a path, the name of one that comes with the package, or a hub id.

    A hub id is looked up in the local cache and downloaded when possible.

    Raises:
        CheckpointError: neither a local path nor a reachable repository.
    """
    here = local_checkpoint(path)
    if here is not None:
        return here
    text = str(path)
    shipped = shipped_models()
    if text.count('/') != 1 or text.startswith(('.', '~', '/')):
        raise CheckpointError(
            f'no checkpoint at {text}: give a folder written by `instructvla checkpoint convert`, a released run '
            'directory (config.json, dataset_statistics.json, checkpoints/*.pt), a hub id owner/name, or the name of '
            f'one that comes with the package ({", ".join(shipped) or "none here"})'
        )
    try:
        from huggingface_hub import snapshot_download

        patterns = ['*.json', '*.safetensors', 'checkpoints/*.pt', '*.md']
        return Path(snapshot_download(text, revision=revision or None, allow_patterns=patterns))
    except Exception as err:  # network, login and cache errors share no base class; all end in the same advice
        reason = str(err).splitlines()[0].rstrip('.') if str(err) else type(err).__name__
        raise CheckpointError(
            f'cannot get {text} from the hub: {reason}. On a machine with network run '
            f'`hf download {text} --local-dir {text.split("/")[1]}`, copy that folder here and give its path'
        ) from None


def save(bundle: Bundle, folder: str | Path, *, origin: str = '', overwrite: bool = False) -> Path:
    """Write a model in our format. See :func:`write`.

    Raises:
        CheckpointError: the model was changed for serving and no longer has all of its weights.
    """
    tensors = {k: v.detach().contiguous().cpu() for k, v in bundle.model.state_dict().items()}
    if missing := sorted(parameter_shapes(bundle.config).keys() - tensors.keys()):
        raise CheckpointError(
            f'{len(missing)} weights ({missing[0]}, ...) are merged or packed for serving and cannot be saved: '
            'load the checkpoint again and save that'
        )
    return write(folder, bundle.config, tensors, bundle.statistics, bundle.tokenizer_file, origin, overwrite)


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    views: int | None = None,
    mask: str | None = None,
    tokenizer: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn a released run directory into our format; ``dtype`` None keeps the number format."""
    opened = open_source(source, views=views, mask=mask, tokenizer=tokenizer)
    _prompts(opened.config, opened.tokenizer_file)
    tensors = {k: (v if dtype is None else v.to(dtype)).contiguous() for k, v in opened.tensors.items()}
    return write(folder, opened.config, tensors, opened.statistics, opened.tokenizer_file, opened.origin, overwrite)


def write(
    folder: str | Path,
    config: ModelConfig,
    tensors: dict[str, Tensor],
    statistics: Mapping[str, Any],
    tokenizer_file: Path,
    origin: str = '',
    overwrite: bool = False,
) -> Path:
    """Write our format beside ``folder`` and move it into place.

    Raises:
        CheckpointError: ``folder`` exists and may not be replaced, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = Path(folder).expanduser()
    if target.exists() and not overwrite:
        raise CheckpointError(f'{target} exists; choose another folder, or replace it with --overwrite')
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f'.{target.name}-', dir=target.parent))
    try:
        # A view of a memory-mapped file shares its storage; safetensors wants tensors of their own.
        own = {k: v.clone() if v.untyped_storage().nbytes() != v.nbytes else v for k, v in tensors.items()}
        save_file(own, str(work / WEIGHTS), metadata={'format': FORMAT})
        revision = _digest(work / WEIGHTS)
        meta = {'format': FORMAT, 'revision': revision, 'origin': Path(origin).name, 'model': to_dict(config)}
        (work / CONFIG).write_text(json.dumps(meta, indent=1) + '\n', encoding='utf-8')
        (work / STATISTICS).write_text(json.dumps(dict(statistics), indent=1) + '\n', encoding='utf-8')
        (work / 'tokenizer').mkdir()
        shutil.copyfile(tokenizer_file, work / 'tokenizer' / 'tokenizer.json')
        (work / 'README.md').write_text(_card(config, own, revision, origin, statistics), encoding='utf-8')
        for made in (work, *work.rglob('*')):  # what tempfile and safetensors make is for the owner alone
            made.chmod(0o755 if made.is_dir() else 0o644)
        if target.exists():
            old = target.with_name(f'.{target.name}-old-{os.getpid()}')
            target.rename(old)
            work.rename(target)
            shutil.rmtree(old)
        else:
            work.rename(target)
    except (OSError, SafetensorError) as err:  # the second is what a full disk looks like from Rust
        raise CheckpointError(f'cannot write {target}: {err}') from err
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def materialize(model: InstructVLA, device: str | torch.device) -> None:
    """Give a model built on the meta device the one buffer that no file holds."""
    embeddings = model.vlm.tower.embeddings
    count = embeddings.position_embedding.num_embeddings
    embeddings.register_buffer('position_ids', torch.arange(count, device=device)[None], persistent=False)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: missing or not a JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except OSError as err:
        raise CheckpointError(f'cannot read {file}: {err.strerror}') from None
    except ValueError as err:
        raise CheckpointError(f'{file} is not JSON: {err}') from None
    if not isinstance(content, dict):
        raise CheckpointError(f'{file}: expected an object, got {type(content).__name__}')
    return content


def _open_own(folder: Path, tokenizer: str | Path | None) -> Source:
    from safetensors import SafetensorError, safe_open

    meta = read_json(folder / CONFIG)
    if meta.get('format') != FORMAT:
        raise CheckpointError(f'{folder / CONFIG}: format {meta.get("format")!r}, this version reads {FORMAT!r}')
    try:
        config = from_dict(ModelConfig, meta.get('model', {}), 'model')
    except ConfigError as err:
        raise CheckpointError(f'{folder / CONFIG}: {err}') from None
    try:
        with safe_open(str(folder / WEIGHTS), framework='pt', device='cpu') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a mapping
    except (SafetensorError, OSError) as err:
        raise CheckpointError(f'{folder / WEIGHTS} is truncated or damaged: {err}. Copy it again') from None
    check_names({n: tuple(t.shape) for n, t in tensors.items()}, parameter_shapes(config))
    statistics = _statistics(folder, config)
    file_ = _tokenizer_file(Path(tokenizer) if tokenizer else folder)
    return Source(config, tensors, statistics, file_, str(meta.get('revision', '')), str(folder))


def _open_released(place: Path, views: int | None, tokenizer: str | Path | None) -> Source:
    if place.is_file():
        if place.suffix != '.pt' or place.parent.name != 'checkpoints':
            raise CheckpointError(f'{place}: a released checkpoint is <run>/checkpoints/*.pt')
        file, run = place, place.parent.parent
    else:
        run = place
        files = sorted((run / 'checkpoints').glob('*.pt'))
        if len(files) != 1:
            what = 'no checkpoint' if not files else f'{len(files)} checkpoints, name one'
            raise CheckpointError(f'{run}: {what} in checkpoints/*.pt, and no {WEIGHTS}')
        file = files[0]
    run_config = read_json(run / CONFIG)
    architecture = next((read_json(run / a) for a in ARCHITECTURES if (run / a).is_file()), None)
    groups = read_torch_file(file)
    shapes = {g: {k: tuple(t.shape) for k, t in keys.items()} for g, keys in groups.items()}
    config = infer_config(shapes, run_config, architecture, views)
    unused = check_released(groups, config)
    statistics = _statistics(run, config)
    tokenizer_file = _tokenizer_file(Path(tokenizer) if tokenizer else run)
    tensors = assemble(groups, config)
    return Source(config, tensors, statistics, tokenizer_file, f'{run.name}/{file.stem}', str(file), tuple(unused))


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a model, without allocating it."""
    with torch.device('meta'):
        return {n: tuple(t.shape) for n, t in InstructVLA(config).state_dict().items()}


def _statistics(folder: Path, config: ModelConfig) -> dict[str, Any]:
    raw = read_json(folder / STATISTICS)
    for name in raw:
        read_statistics(raw, name, proprio=config.proprio)
    return raw


def _tokenizer_file(folder: Path) -> Path:
    for place in (folder, folder / 'tokenizer.json', folder / 'tokenizer' / 'tokenizer.json'):
        if place.is_file():
            return place
    raise CheckpointError(
        f'no tokenizer.json in {folder} or {folder / "tokenizer"}. A released run directory does not hold it: '
        'copy tokenizer.json of the Eagle2-2B folder to <run>/tokenizer/, or name its folder with --tokenizer'
    )


def _prompts(config: ModelConfig, tokenizer_file: Path) -> PromptEncoder:
    tokenizer = load_tokenizer(tokenizer_file, config.queries)
    have = len(tokenizer) - config.queries
    if have != config.language.vocab_size:
        raise CheckpointError(
            f'{tokenizer_file} has {have} rows, the model {config.language.vocab_size}: it is not its tokenizer'
        )
    return PromptEncoder(tokenizer, config.vision.image_tokens, config.queries)


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open('rb') as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:12]


def _card(
    config: ModelConfig, tensors: Mapping[str, Tensor], revision: str, origin: str, statistics: Mapping[str, Any]
) -> str:
    total = sum(t.numel() for t in tensors.values())
    dtypes = ', '.join(sorted({str(t.dtype).removeprefix('torch.') for t in tensors.values()}))
    return '\n'.join(
        [
            f'# {config.name}',
            '',
            'An InstructVLA model (arXiv 2507.17520) in the format of `instructvla_ros`.',
            '',
            f'* revision `{revision}`, {total / 1e6:.1f} M parameters, {dtypes}',
            f'* stage {config.stage}, {config.views} view(s), arm state: {"yes" if config.proprio else "no"}, '
            f'{config.horizon} steps per chunk, {config.queries} latent queries, expert mask `{config.expert.mask}`',
            f'* datasets: {", ".join(statistics) or "none"}',
            f'* made from `{Path(origin).name}`' if origin else '* trained with instructvla_ros',
            '',
            '`instructvla checkpoint inspect <this folder>` lists the sizes.',
            '',
        ]
    )
