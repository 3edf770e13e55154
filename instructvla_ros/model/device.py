"""Device and number format of a settings value."""

from __future__ import annotations

import torch

from ..errors import ConfigError, suggest


def pick_device(name: str) -> torch.device:
    """Device of a settings value; 'auto' takes a GPU when there is one.

    Raises:
        ConfigError: unknown name, or no such device.
    """
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r}: allowed are 'auto', 'cpu', 'cuda', 'cuda:1', ...") from None
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f'device {name!r}: this machine has {torch.cuda.device_count()} usable GPUs')
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Number format of a settings value; 'auto' is bfloat16 on a GPU and float32 elsewhere.

    Raises:
        ConfigError: unknown name.
    """
    formats = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
    formats['auto'] = formats['bfloat16' if device.type == 'cuda' else 'float32']
    if name not in formats:
        raise ConfigError(f'dtype {name!r}.{suggest(name, formats)}')
    return formats[name]
