"""What a person asks for on the operator's page: checked here, carried out elsewhere."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import Enum

from ..errors import InstructionError
from ..goals import check_duration, check_instruction

MAX_BYTES = 65536  # of one message of a browser
MAX_LENGTH = 1000  # characters of an instruction or question; the policy node may ask for less


class Do(Enum):
    """What is asked for."""

    STOP = 'stop'
    INSTRUCTION = 'instruction'
    QUESTION = 'question'
    CANCEL = 'cancel'
    ENABLE = 'enable'
    DRY_RUN = 'dry_run'
    RESET = 'reset'


@dataclass(frozen=True)
class Intent:
    """One wish.

    Attributes:
        text: of an instruction or question. on: of ENABLE and DRY_RUN. seconds: limit of an instruction, 0: default.
    """

    do: Do
    text: str = ''
    on: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Ack:
    """The browser has shown the newest message of ``slot``; ``at`` is its clock then [ms]."""

    slot: str
    at: float


def parse(message: str | bytes) -> Intent | Ack:
    """What a browser said.

    Raises:
        InstructionError: it is not understood, or the words are not valid.
    """
    if isinstance(message, bytes):
        raise InstructionError('the page sent bytes; it speaks JSON text')
    try:
        data = json.loads(message)
    except (ValueError, RecursionError):
        raise InstructionError('the page sent something that is not JSON') from None
    if not isinstance(data, dict):
        raise InstructionError('the page sent JSON that is not an object')
    if 'ack' in data:
        return Ack(_text(data, 'ack'), _number(data, 'at'))
    kinds = {kind.value: kind for kind in Do}
    kind = kinds.get(_text(data, 'do'))
    if kind is None:
        raise InstructionError(f'unknown wish {data.get("do")!r}; known are {", ".join(kinds)}')
    if kind in (Do.INSTRUCTION, Do.QUESTION):
        text = check_instruction(_text(data, 'text'), MAX_LENGTH, kind.value)
        seconds = _number(data, 'seconds') if 'seconds' in data else 0.0
        return Intent(kind, text, seconds=check_duration(seconds, 0.0))
    if kind in (Do.ENABLE, Do.DRY_RUN):
        on = data.get('on')
        if not isinstance(on, bool):
            raise InstructionError(f'{kind.value} needs on: true or false, got {on!r}')
        return Intent(kind, on=on)
    return Intent(kind)


def _text(data: dict[str, object], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise InstructionError(f'{name} has to be text, got {type(value).__name__}')
    return value


def _number(data: dict[str, object], name: str) -> float:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InstructionError(f'{name} has to be a finite number, got {value!r}')
    return float(value)
