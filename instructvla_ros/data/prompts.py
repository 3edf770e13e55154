"""Which dialogue a training frame becomes: prompt sampling of vision-language-action instruction tuning.

Specification 9.6: a frame of an episode is shown with the plain instruction, with its move primitive, after a question
about the scene, or with a rewritten command or a situation that the model first answers in words. Everything here is a
pure function of an episode's texts, a frame number and a random generator; the messages are those of
``model.prompt.PromptEncoder.action_messages``, so what is trained is what is asked later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from ..errors import ConfigError, DataError
from ..wording import ACTION, PRIMITIVE, REASON, defuse

Message = Mapping[str, str]
Kind = Literal['plain', 'primitive', 'caption', 'qa', 'cr', 'cc']
KINDS: tuple[Kind, ...] = ('plain', 'primitive', 'caption', 'qa', 'cr', 'cc')

CAPTION_REQUESTS = (
    'Describe the objects on the table and leave out the robot.',
    'What can be seen on the table, apart from the robot?',
    'Give a short description of the scene without mentioning the robot arm.',
    'Which things are in front of the robot, and where are they?',
    'Say in a sentence or two what is in this picture. Ignore the robot.',
    'List what lies on the work surface and how it is arranged, not the robot.',
    'How would you describe this workplace to somebody who cannot see it? Skip the robot.',
    'Summarise the scene around the robot, but not the robot itself.',
    'Tell me about the items in view and their surroundings; the robot does not matter.',
)
"""Nine ways to ask for a caption."""


@dataclass(frozen=True)
class Mix:
    """Shares of the dialogue kinds (specification 9.6).

    Attributes:
        plain, qa, cc, cr: stage 2: instruction only; a question or caption first; a situation; a rewritten command.
            They add up to 1. A kind that an episode has no texts for becomes 'plain'.
        primitive: share of the plain ones that ask for the move primitive too (stage 1 and 2).
        lower: instructions in lower case, as the released models were trained; other texts keep their case.
        reference_none: train the word "None" where a frame has no primitive, as the released stage 2 did by mistake.

    Raises:
        ConfigError: a share is not in 0 .. 1, or the four do not add up to 1.
    """

    plain: float = 0.4
    qa: float = 0.2
    cc: float = 0.2
    cr: float = 0.2
    primitive: float = 0.2
    lower: bool = True
    reference_none: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, bool) and not 0.0 <= value <= 1.0:
                raise ConfigError(f'prompt mix: {field.name} is {value}, a share from 0 to 1 is needed')
        total = self.plain + self.qa + self.cc + self.cr
        if abs(total - 1.0) > 1e-6:
            raise ConfigError(f'prompt mix: plain + qa + cc + cr is {total:.6g}, it has to be 1')


@dataclass(frozen=True)
class Dialog:
    """One training dialogue about one frame.

    Attributes:
        messages: ``role`` ('user' or 'assistant') and ``content``; the last one ends with the query tokens.
        kind: what was sampled, after falling back to 'plain' where texts are missing.
    """

    messages: list[Message]
    kind: Kind


def sample_dialog(
    instruction: str,
    annotations: Mapping[str, Any] | None,
    frame: int,
    rng: np.random.Generator,
    stage: int,
    query_text: str,
    mix: Mix = Mix(),  # noqa: B008  # frozen
) -> Dialog:
    """Draw the dialogue for a frame.

    Args:
        instruction: of the episode. annotations: its VLA-IT entry (specification 9.5), ``{}`` or None without.
        frame: number of the frame in the episode, for the move primitive.
        rng: two uniforms for kind and primitive, then one number per choice among texts.
        stage: 1 (instruction and primitives) or 2 (all kinds).
        query_text: the latent query tokens joined, as ``PromptEncoder.query_text``.

    Raises:
        DataError: the instruction is empty, or the annotations are not of the VLA-IT form.
        ConfigError: another stage.
    """
    if stage not in (1, 2):
        raise ConfigError(f'stage {stage!r}: 1 (instruction and primitives) or 2 (instruction tuning) is allowed')
    if not instruction or not instruction.strip():
        raise DataError('an episode without an instruction cannot be trained on; give it one or leave it out')
    p, q = rng.random(2)
    command = defuse(instruction.lower() if mix.lower else instruction)
    if stage == 2 and p >= mix.plain:
        dialog = _instructed(p, command, annotations or {}, rng, query_text, mix)
        if dialog is not None:
            return dialog
    if q < mix.primitive:
        text = move_primitive(annotations, frame)
        if text is None and stage == 2 and mix.reference_none:
            text = 'None'
        if text is not None:
            return Dialog([_user(PRIMITIVE, command), _assistant(f'{defuse(text)} {query_text}')], 'primitive')
    return Dialog([_user(ACTION, command), _assistant(query_text)], 'plain')


def move_primitive(annotations: Mapping[str, Any] | None, frame: int) -> str | None:
    """Move primitive of a frame, or None when there is none."""
    labels = _mapping(annotations, 'features').get('move_primitive') or ()
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise DataError("annotations: 'features' / 'move_primitive' has to be a list with one string per frame")
    if not 0 <= frame < len(labels):
        return None
    label = labels[frame]
    if label is None or label == '':
        return None
    if not isinstance(label, str):
        raise DataError(f"annotations: 'move_primitive' of frame {frame} is {label!r}, a string is needed")
    return label


def pairs(annotations: Mapping[str, Any] | None, kind: str) -> list[tuple[str, str]]:
    """(question, answer) of one list of a VLA-IT entry: 'QA', 'CR' or 'CC'; those with an empty side are left out."""
    items = _mapping(annotations, 'alt_instruction').get(kind) or ()
    if isinstance(items, (str, Mapping)) or not isinstance(items, Sequence):
        raise DataError(f"annotations: {kind!r} has to be a list of {{'question', 'answer'}}, got {items!r}")
    found = []
    for at, item in enumerate(items):
        question = item.get('question') if isinstance(item, Mapping) else None
        answer = item.get('answer') if isinstance(item, Mapping) else None
        if not isinstance(question, str) or not isinstance(answer, str):
            raise DataError(f"annotations: {kind!r}[{at}] has to be {{'question': text, 'answer': text}}, got {item!r}")
        if question.strip() and answer.strip():
            found.append((question, answer))
    return found


def caption(annotations: Mapping[str, Any] | None) -> str | None:
    """Caption of a VLA-IT entry, or None."""
    text = _mapping(annotations, 'alt_instruction').get('Caption')
    if text is not None and not isinstance(text, str):
        raise DataError(f"annotations: 'Caption' is {text!r}, a text is needed")
    return text if text and text.strip() else None


def _instructed(
    p: float, command: str, annotations: Mapping[str, Any], rng: np.random.Generator, query_text: str, mix: Mix
) -> Dialog | None:
    """The kinds with words; None when the episode has no texts for the one that was drawn."""
    if p < mix.plain + mix.qa:
        told = caption(annotations)
        options: list[tuple[Kind, str, str]] = [('qa', *pair) for pair in pairs(annotations, 'QA')]
        if told is not None:
            request = CAPTION_REQUESTS[int(rng.integers(len(CAPTION_REQUESTS)))]
            options.append(('caption', request, told))
        if not options:
            return None
        kind, question, answer = options[int(rng.integers(len(options)))]
        turns = [_user('{}', question), _assistant(defuse(answer)), _user(ACTION, command), _assistant(query_text)]
        return Dialog(turns, kind)
    drawn: Kind = 'cc' if p < mix.plain + mix.qa + mix.cc else 'cr'
    choices = pairs(annotations, drawn.upper())
    if not choices:
        return None
    question, answer = choices[int(rng.integers(len(choices)))]
    return Dialog([_user(REASON, question), _assistant(f'{defuse(answer)} {query_text}')], drawn)


def _mapping(annotations: Mapping[str, Any] | None, key: str) -> Mapping[str, Any]:
    value = (annotations or {}).get(key) or {}
    if not isinstance(value, Mapping):
        raise DataError(f'annotations: {key!r} has to be an object, got {value!r}')
    return value


def _user(template: str, text: str) -> Message:
    return {'role': 'user', 'content': template.format(defuse(text))}


def _assistant(content: str) -> Message:
    return {'role': 'assistant', 'content': content}
