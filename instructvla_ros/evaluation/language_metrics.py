"""How near an answer comes to a reference: BLEU, METEOR, CIDEr and sentence similarity, each with a bootstrap interval.

BLEU is computed by ``sacrebleu`` and METEOR by ``nltk``; both work without downloads. CIDEr-D is written here from its
publication, because its one package has had no release since 2020. All get the same words: lower case, no punctuation.
"""

from __future__ import annotations

import importlib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, SetupError
from ..geometry import Array

RESAMPLES = 1000
SEED = 20251120
_WORD = re.compile(r"[^\W_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}][^\W_]+)*")


def words(text: str) -> list[str]:
    """Words of a text in lower case, without punctuation; an apostrophe inside a word stays."""
    return [w.replace('\N{RIGHT SINGLE QUOTATION MARK}', "'") for w in _WORD.findall(text.lower())]


class Metric(Protocol):
    """A metric over pairs. ``measure`` gives one row of numbers per pair, ``combine`` the score of any rows."""

    name: str

    def measure(self, answers: Sequence[str], references: Sequence[str]) -> Array:
        """Numbers (N, k) of N pairs."""
        ...

    def combine(self, rows: Array) -> float:
        """Score of rows (n, k) of :meth:`measure`."""
        ...


class Bleu:
    """Corpus BLEU in percent without smoothing (Papineni et al. 2002), by sacrebleu.

    Raises:
        SetupError: sacrebleu is not installed.
    """

    def __init__(self, order: int) -> None:
        self.name = f'BLEU-{order}'
        self._order = order
        library = need('sacrebleu.metrics.bleu')
        self._bleu = library.BLEU
        self._scorer = library.BLEU(
            tokenize='none', smooth_method='none', max_ngram_order=order, effective_order=True, force=True
        )

    def measure(self, answers: Sequence[str], references: Sequence[str]) -> Array:
        """Rows: matches and totals per order, words of the answer, words of the reference."""
        rows = []
        for answer, reference in zip(answers, references, strict=True):
            s = self._scorer.sentence_score(' '.join(words(answer)), [' '.join(words(reference))])
            rows.append([*s.counts, *s.totals, s.sys_len, s.ref_len])
        return np.asarray(rows, np.float64).reshape(-1, 2 * self._order + 2)

    def combine(self, rows: Array) -> float:
        """Corpus score: the sums enter one formula, not the sentences' scores."""
        n, total = self._order, rows.sum(axis=0).astype(int).tolist()
        score = self._bleu.compute_bleu(
            total[:n], total[n : 2 * n], total[-2], total[-1], smooth_method='none', max_ngram_order=n
        )
        return float(score.score)


class Meteor:
    """Mean METEOR in percent (Banerjee and Lavie 2005), by nltk: exact words and stems, and synonyms with WordNet.

    Args:
        wordnet: folder of WordNet's database files (``data.noun`` ...); '' leaves synonyms out.

    Raises:
        SetupError: nltk or the database is missing.
    """

    def __init__(self, wordnet: str = '') -> None:
        self.name = 'METEOR'
        self._score = need('nltk.translate.meteor_score').single_meteor_score
        self._wordnet: Any = _NoSynonyms()
        if wordnet:
            if not (Path(wordnet) / 'data.noun').is_file():
                raise SetupError(f'{wordnet} holds no WordNet database (data.noun, index.noun, lexnames ...)')
            self._wordnet = need('nltk.corpus.reader.wordnet').WordNetCorpusReader(str(wordnet), None)
        self.modules = 'exact, stem, synonym' if wordnet else 'exact, stem'

    def measure(self, answers: Sequence[str], references: Sequence[str]) -> Array:
        """Score of each pair."""
        out = []
        for answer, reference in zip(answers, references, strict=True):
            a, r = words(answer), words(reference)
            out.append(self._score(r, a, wordnet=self._wordnet) if a and r else 0.0)
        return 100.0 * np.asarray(out, np.float64).reshape(-1, 1)

    def combine(self, rows: Array) -> float:
        """Mean."""
        return float(rows.mean())


class _NoSynonyms:
    """Stands where nltk wants WordNet, and knows no word."""

    def synsets(self, word: str) -> list[Any]:
        """No synonyms."""
        return []


class CiderD:
    """CIDEr-D (Vedantam et al. 2015, section 7) as captioning papers report it: n = 1 .. 4, sigma 6, times 10.

    ``g_n(s)``: for every n-gram its count in s times ``log(N) - log(max(1, texts with it))`` over the N references.
    For an answer c and its reference s, lengths in words: ``10 * mean over n of exp(-(|c| - |s|)^2 / 72) *
    sum min(g_n(c), g_n(s)) g_n(s) / (|g_n(c)| |g_n(s)|)``. The document frequencies come from the references given to
    ``measure``.
    """

    name = 'CIDEr'
    orders, sigma = 4, 6.0

    def measure(self, answers: Sequence[str], references: Sequence[str]) -> Array:
        """Score of each pair."""
        told, wanted = [_grams(words(a)) for a in answers], [_grams(words(r)) for r in references]
        seen: Counter[tuple[str, ...]] = Counter()
        for grams in wanted:
            seen.update(set(grams))
        logs = math.log(max(1, len(wanted)))
        out = [self._pair(a, r, seen, logs) for a, r in zip(told, wanted, strict=True)]
        return np.asarray(out, np.float64).reshape(-1, 1)

    def combine(self, rows: Array) -> float:
        """Mean."""
        return float(rows.mean())

    def _pair(self, told: Grams, wanted: Grams, seen: Counter[tuple[str, ...]], logs: float) -> float:
        lengths = [sum(c for g, c in grams.items() if len(g) == 1) for grams in (told, wanted)]
        penalty = math.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * self.sigma**2))
        total = 0.0
        for n in range(1, self.orders + 1):
            a, r = (self._weights(grams, n, seen, logs) for grams in (told, wanted))
            norm = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in r.values()))
            if norm > 0.0:
                total += sum(min(v, r[g]) * r[g] for g, v in a.items() if g in r) / norm
        return 10.0 * penalty * total / self.orders

    @staticmethod
    def _weights(grams: Grams, n: int, seen: Counter[tuple[str, ...]], logs: float) -> dict[tuple[str, ...], float]:
        return {g: c * (logs - math.log(max(1, seen[g]))) for g, c in grams.items() if len(g) == n}


Grams = Counter[tuple[str, ...]]


def _grams(text: list[str], orders: int = CiderD.orders) -> Grams:
    return Counter(tuple(text[i : i + n]) for n in range(1, orders + 1) for i in range(len(text) - n + 1))


class Similarity:
    """Mean cosine of sentence embeddings in percent; ``encode`` gives unit vectors (N, d)."""

    def __init__(self, name: str, encode: Callable[[Sequence[str]], NDArray[Any]]) -> None:
        self.name, self._encode = name, encode

    def measure(self, answers: Sequence[str], references: Sequence[str]) -> Array:
        """Cosine of each pair."""
        a, r = (np.asarray(self._encode(list(t)), np.float64) for t in (answers, references))
        return np.asarray(100.0 * (a * r).sum(axis=1, keepdims=True))

    def combine(self, rows: Array) -> float:
        """Mean."""
        return float(rows.mean())


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % bootstrap interval over samples."""

    value: float
    low: float
    high: float
    samples: int


def resample(count: int, resamples: int = RESAMPLES, seed: int = SEED) -> NDArray[np.int64]:
    """Indices (resamples, count), drawn with replacement; the same for the same arguments."""
    return np.random.default_rng(seed).integers(0, count, (resamples, count))


def figure(rows: Array, combine: Callable[[Array], float], resamples: int = RESAMPLES) -> Figure:
    """Score of rows and its percentile interval.

    Raises:
        ConfigError: no rows.
    """
    if not len(rows):
        raise ConfigError('no samples to score')
    found = [combine(rows[index]) for index in resample(len(rows), resamples)]
    low, high = np.percentile(found, [2.5, 97.5])
    return Figure(combine(rows), float(low), float(high), len(rows))


def relative_change(
    new: Array, old: Array, combine: Callable[[Array], float], resamples: int = RESAMPLES
) -> Figure | None:
    """``score(new) / score(old) - 1`` over the same samples, resampled in pairs; None when the old score is 0.

    Raises:
        ConfigError: other numbers of samples, or none.
    """
    if len(new) != len(old) or not len(new):
        raise ConfigError(f'a change needs the same samples on both sides, got {len(new)} and {len(old)}')
    base = combine(old)
    if base == 0.0:
        return None
    pairs = [(combine(new[i]), combine(old[i])) for i in resample(len(new), resamples)]
    found = [a / b - 1.0 for a, b in pairs if b != 0.0]
    low, high = np.percentile(found, [2.5, 97.5])
    return Figure(combine(new) / base - 1.0, float(low), float(high), len(new))


def need(module: str) -> Any:
    """Import a library of the extra ``language``.

    Raises:
        SetupError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as err:
        name = module.split('.')[0]
        raise SetupError(
            f"{name} is missing ({err}); install the package with its language extra: pip install '.[model,language]'"
        ) from err
