"""Errors a user can meet. Each message says what was wrong, what is allowed, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InstructVLAError(Exception):
    """Root of every error this package raises on purpose."""


class ConfigError(InstructVLAError):
    """A configuration key or value is not valid."""


class ObservationError(InstructVLAError):
    """An observation, message or image cannot be used."""


class ChunkError(InstructVLAError):
    """An action chunk is malformed."""


class KinematicsError(InstructVLAError):
    """A pose or joint vector is outside what the arm can do."""


class TaskError(InstructVLAError):
    """A task, object or instruction is not known to the simulator."""


class InstructionError(InstructVLAError):
    """An instruction or question cannot be followed as text: empty, too long, or with control characters."""


class CheckpointError(InstructVLAError):
    """A checkpoint is incomplete, of another variant, or not safe to load."""


class DataError(InstructVLAError):
    """A recording, dataset or annotation cannot be used as training data."""


class SetupError(InstructVLAError):
    """Something this machine lacks: a library, a device, a file of this package."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return ``' Did you mean a or b?'`` for the nearest valid names, followed by all of them.

    Args:
        name: what was given.
        valid: every allowed name.
    """
    names = sorted(str(v) for v in valid)
    near = difflib.get_close_matches(str(name), names, n=2, cutoff=0.5)
    hint = f' Did you mean {" or ".join(repr(n) for n in near)}?' if near else ''
    return f'{hint} Allowed: {", ".join(names)}.'
