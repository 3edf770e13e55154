"""Zstandard: in the standard library from Python 3.14, before that from the package backports.zstd."""

from __future__ import annotations

try:
    from compression import zstd
except ImportError:
    from backports import zstd

__all__ = ['zstd']
