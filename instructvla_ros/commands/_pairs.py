"""NAME=VALUE on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Names with their values as written.

    Raises:
        ConfigError: a text is not NAME=VALUE, or a name comes twice.
    """
    out: dict[str, str] = {}
    for text in texts:
        name, value = _parted(option, text)
        if not value:
            raise ConfigError(f'{option} {text!r}: expected NAME=VALUE')
        if name in out:
            raise ConfigError(f'{option}: {name} is given twice')
        out[name] = value
    return out


def changes(option: str, texts: Sequence[str], kind: type) -> dict[str, Any]:
    """Values for the settings ``kind``, read as in a YAML file of them; the last one of a name counts.

    Raises:
        ConfigError: a text is not NAME=VALUE.
    """
    import yaml

    out: dict[str, Any] = {}
    for name, text in (_parted(option, t) for t in texts):
        try:
            out[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            out[name] = text
        if isinstance(getattr(kind, name, None), str) and isinstance(out[name], bool):
            out[name] = text  # YAML takes the words on and off for true and false
    return out


def _parted(option: str, text: str) -> tuple[str, str]:
    name, sign, value = (part.strip() for part in text.partition('='))
    if not (name and sign):
        raise ConfigError(f'{option} {text!r}: expected NAME=VALUE')
    return name, value
