"""The tokenizer of the VLM with the latent queries added, and a small one for models trained from scratch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

PAD, IM_START, IM_END = '<|endoftext|>', '<|im_start|>', '<|im_end|>'
IMG_OPEN, IMG_CLOSE, IMG_CONTEXT = '<img>', '</img>', '<IMG_CONTEXT>'
QUERY = '<new_token_{}>'


def query_tokens(count: int) -> list[str]:
    """Names of the latent query tokens."""
    return [QUERY.format(i) for i in range(count)]


def load_tokenizer(folder: str | Path, queries: int) -> Any:
    """Read ``tokenizer.json`` and append the latent queries to the vocabulary.

    Only the tokenizer file itself is read: no code of the folder is executed.

    Returns:
        ``PreTrainedTokenizerFast`` whose last ``queries`` rows are the latent queries.

    Raises:
        CheckpointError: file missing, unreadable, without a control token, or with queries in an odd place.
    """
    from transformers import PreTrainedTokenizerFast

    path = Path(folder)
    file = path if path.is_file() else path / 'tokenizer.json'
    if not file.is_file():
        raise CheckpointError(
            f'no tokenizer.json in {path}. A released run directory does not hold the tokenizer: '
            'copy tokenizer.json of the Eagle2-2B folder to <run>/tokenizer/ or name its folder'
        )
    try:
        json.loads(file.read_text(encoding='utf-8'))
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=IM_END, pad_token=PAD)
    except Exception as err:  # the Rust parser raises plain Exception; the user needs the file and the reason
        raise CheckpointError(f'cannot read the tokenizer {file}: {err}') from err
    vocabulary = tokenizer.get_vocab()
    absent = [t for t in (PAD, IM_START, IM_END, IMG_OPEN, IMG_CLOSE, IMG_CONTEXT) if t not in vocabulary]
    if absent:
        raise CheckpointError(f'{file} lacks the control tokens {", ".join(absent)}: not a tokenizer of this VLM')
    names = query_tokens(queries)
    tokenizer.add_tokens([n for n in names if n not in vocabulary])
    ids = [int(tokenizer.convert_tokens_to_ids(n)) for n in names]  # type: ignore[arg-type]
    if ids != list(range(len(tokenizer) - queries, len(tokenizer))):
        raise CheckpointError(
            f'{file}: the {queries} latent queries must be the contiguous tail of the vocabulary, got ids '
            f'{ids[0]} .. {ids[-1]} of {len(tokenizer)}'
        )
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: str | Path) -> Path:
    """Train a byte-level BPE on ``texts`` with the control tokens of the VLM; write ``folder/tokenizer.json``.

    ``vocab_size`` counts the control tokens but not the latent queries; the file is padded with reserved tokens so
    that it has exactly this many rows.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    control = [PAD, IM_START, IM_END, IMG_OPEN, IMG_CLOSE, IMG_CONTEXT]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    missing = vocab_size - bpe.get_vocab_size()
    if missing > 0:
        bpe.add_tokens([AddedToken(f'<reserved_{i}>', normalized=False) for i in range(missing)])
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    bpe.save(str(out / 'tokenizer.json'))
    return out
