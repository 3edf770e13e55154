"""Sentence embeddings of a model folder that is already on this machine (Sentence-BERT, SimCSE)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import CheckpointError, ConfigError

POOLINGS = ('mean', 'cls', 'pooler')


class SentenceEncoder:
    """Unit vectors of texts. Nothing is downloaded, and only safetensors weights are read.

    Args:
        folder: with ``config.json``, ``model.safetensors`` and tokenizer, as the hub has it.
        pooling: 'mean' over the tokens (Sentence-BERT), 'cls' (SimCSE, unsupervised), 'pooler' (SimCSE, supervised).

    Raises:
        CheckpointError: not such a folder. ConfigError: no such pooling.
    """

    def __init__(self, folder: str | Path, pooling: str = 'mean', device: str = 'cpu', batch: int = 32) -> None:
        if pooling not in POOLINGS:
            raise ConfigError(f'pooling {pooling!r}: allowed are {", ".join(POOLINGS)}')
        if not (Path(folder) / 'config.json').is_file():
            raise CheckpointError(f'{folder} is not a model folder: config.json, model.safetensors, tokenizer needed')
        from transformers import AutoModel, AutoTokenizer

        self._pooling, self._device, self._batch = pooling, device, batch
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            self._model: Any = AutoModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as err:
            raise CheckpointError(f'{folder} cannot be loaded: {err}'.splitlines()[0]) from None
        self._model.to(device).eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (N, d) of length 1."""
        parts = []
        for start in range(0, len(texts), self._batch):
            given = list(texts[start : start + self._batch])
            tokens = self._tokenizer(given, padding=True, truncation=True, max_length=256, return_tensors='pt')
            tokens = tokens.to(self._device)
            out = self._model(**tokens)
            if self._pooling == 'pooler':
                vectors = out.pooler_output
            elif self._pooling == 'cls':
                vectors = out.last_hidden_state[:, 0]
            else:
                weights = tokens['attention_mask'][:, :, None].to(out.last_hidden_state.dtype)
                vectors = (out.last_hidden_state * weights).sum(1) / weights.sum(1)
            parts.append(torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
