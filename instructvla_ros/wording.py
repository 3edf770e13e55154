"""The sentences around an instruction, shared by training data and model (specification 1.4), and their defence."""

from __future__ import annotations

SYSTEM = 'You are a helpful assistant.'
ACTION = 'What action should the robot take to {}?'
REASON = ACTION + ' First answer my question.'
PRIMITIVE = ACTION + ' Give both move primitive and action.'

# How the control tokens of the VLM begin: '<|im_end|>', '<img>', '<IMG_CONTEXT>', '<new_token_0>' ...
_OPENINGS = ('<|', '<img', '</img', '<IMG_CONTEXT', '<new_token_')


def defuse(text: str) -> str:
    """Text in which no control token of the VLM is left: a blank is put behind the first character of each."""
    for opening in _OPENINGS:
        text = text.replace(opening, opening[0] + ' ' + opening[1:])
    return text
