"""From messages to tokens: chat template, messages of the policy, token ids, label masks (specification 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, ObservationError
from ..wording import ACTION, REASON, SYSTEM, defuse
from .tokenizer import IM_END, IM_START, IMG_CLOSE, IMG_CONTEXT, IMG_OPEN, PAD, query_tokens

IGNORE = -100

Ids = NDArray[np.int64]
Message = Mapping[str, str]


@dataclass(frozen=True)
class Encoded:
    """Token ids (N,) and labels (N,), -100 where nothing is supervised."""

    ids: Ids
    labels: Ids


class PromptEncoder:
    """Turns messages into ids. Every id is looked up in the tokenizer by name.

    Args:
        tokenizer: with the latent queries added (:func:`~.tokenizer.load_tokenizer`).
        image_tokens: tokens of one image.
        queries: latent query tokens.
    """

    def __init__(self, tokenizer: Any, image_tokens: int, queries: int) -> None:
        self.tokenizer = tokenizer
        self.image_tokens = image_tokens
        self.queries = queries
        self.query_text = ''.join(query_tokens(queries))
        lookup = tokenizer.convert_tokens_to_ids
        self.end_id: int = lookup(IM_END)
        self.image_id: int = lookup(IMG_CONTEXT)
        self.first_query_id: int = lookup(query_tokens(queries)[0])
        self.pad_id: int = tokenizer.pad_token_id
        self.control_ids = frozenset(lookup([PAD, IM_START, IM_END, IMG_OPEN, IMG_CLOSE, IMG_CONTEXT]))
        # The rule of specification 1.7 as a token sequence: some tokenizers split 'assistant'.
        self._answer_start = self.encode('assistant\n')
        if not self._answer_start:
            raise CheckpointError("the tokenizer gives no ids for 'assistant' and a newline")

    # -- text -------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], images: int = 0, generate: bool = False) -> str:
        """ChatML text. The images go before the first user turn.

        Args:
            messages: ``role`` ('user' or 'assistant') and ``content``; 'system' messages are replaced by the default.
            images: 0 or more images of the dialogue.
            generate: end with the open header of an answer.
        """
        block = IMG_OPEN + IMG_CONTEXT * self.image_tokens + IMG_CLOSE + '\n'
        # One image carries no number; several are numbered '<image 1>' ... (specification 1.3).
        prefix = block if images == 1 else ''.join(f'<image {i + 1}>{block}' for i in range(images))
        out = [f'{IM_START}system\n{SYSTEM}{IM_END}\n']
        for message in messages:
            role, text = message['role'], message['content']
            if role == 'system':
                continue
            if role not in ('user', 'assistant'):
                raise ObservationError(f"message role {role!r}: allowed are 'user' and 'assistant'")
            if role == 'user':
                text, prefix = prefix + text, ''
            out.append(f'{IM_START}{role}\n{text}{IM_END}\n' if text else f'{IM_START}{role}\n')
        if prefix:
            raise ObservationError('a dialogue with images needs a user turn')
        if generate:
            out.append(f'{IM_START}assistant\n')
        return ''.join(out)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; control tokens inside it are recognised."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, control tokens kept."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    # -- messages ---------------------------------------------------------------------------------------------

    def action_messages(self, instruction: str, response: str | None = None) -> list[Message]:
        """Action pass: plain, or after a sentence of the model (``response``, as returned by :meth:`response`)."""
        if response is None:
            return [_user(ACTION, instruction), {'role': 'assistant', 'content': self.query_text}]
        return [_user(REASON, instruction), {'role': 'assistant', 'content': f'{response} {self.query_text}'}]

    def action(self, instruction: str, response: str | None = None) -> Ids:
        """Ids (N,) of the action pass with one image."""
        return np.asarray(self.encode(self.render(self.action_messages(instruction, response), images=1)), np.int64)

    def reason(self, instruction: str) -> Ids:
        """Ids (N,) that ask for a sentence about ``instruction``."""
        return self.question(REASON.format(safe(instruction)))

    def question(self, text: str) -> Ids:
        """Ids (N,) that ask ``text`` about one image, without the action wrapper."""
        messages = [{'role': 'user', 'content': safe(text)}]
        return np.asarray(self.encode(self.render(messages, images=1, generate=True)), np.int64)

    def response(self, ids: Sequence[int], mode: str = 'clean') -> str:
        """Text of a generated sentence as it enters the action prompt.

        'reference' keeps control tokens and a trailing blank as the released code does (specification 1.6);
        'clean' gives what training saw: the bare text.
        """
        if mode == 'reference':
            return self.decode([i for i in ids if i != self.first_query_id])
        return self.decode([i for i in ids if i < self.first_query_id and i not in self.control_ids]).strip()

    # -- training ---------------------------------------------------------------------------------------------

    def dialog(self, messages: Sequence[Message], images: int = 1) -> Encoded:
        """Ids and labels of a closed dialogue."""
        ids = self.encode(self.render(messages, images=images))
        return Encoded(np.asarray(ids, np.int64), self.labels(ids))

    def labels(self, ids: Sequence[int]) -> Ids:
        """Supervise what follows each 'assistant' + newline up to and including ``<|im_end|>``.

        Raises:
            ObservationError: an answer is not closed.
        """
        start, n = self._answer_start, len(self._answer_start)
        labels = np.full(len(ids), IGNORE, np.int64)
        at = 0
        while at + n <= len(ids):
            if list(ids[at : at + n]) != start:
                at += 1
                continue
            begin = at + n
            try:
                end = list(ids).index(self.end_id, begin)
            except ValueError:
                raise ObservationError('an assistant turn of a training dialogue is not closed') from None
            labels[begin : end + 1] = ids[begin : end + 1]
            at = end + 1
        return labels

    def collate(self, samples: Sequence[Encoded]) -> tuple[Ids, Ids]:
        """Right-pad to ids (B, N) and labels (B, N)."""
        length = max(len(s.ids) for s in samples)
        ids = np.full((len(samples), length), self.pad_id, np.int64)
        labels = np.full((len(samples), length), IGNORE, np.int64)
        for row, sample in enumerate(samples):
            ids[row, : len(sample.ids)] = sample.ids
            labels[row, : len(sample.labels)] = sample.labels
        return ids, labels


def safe(text: str, limit: int = 4000) -> str:
    """Check a text of a person before it enters a prompt, and take the power out of control tokens in it.

    Raises:
        ObservationError: empty, or longer than ``limit`` characters.
    """
    if not text or not text.strip():
        raise ObservationError('the instruction is empty; say what the robot should do')
    if len(text) > limit:
        raise ObservationError(f'the instruction has {len(text)} characters, at most {limit} are allowed')
    return defuse(text)


def _user(template: str, instruction: str) -> Message:
    return {'role': 'user', 'content': template.format(safe(instruction))}
