"""Result tables with published rows beside measured ones, as one HTML file, and the published numbers themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..errors import ConfigError
from ..resources import config_file
from .report import TEMPLATES

NOT_MEASURED = 'not measured'
NOT_PUBLISHED = '\N{EN DASH}'


@dataclass(frozen=True)
class Cell:
    """One cell. ``note``: small print under the number; ``css``: 'best', 'missing' or ''."""

    text: str
    note: str = ''
    css: str = ''


@dataclass(frozen=True)
class Row:
    """One system. ``kind``: 'published' or 'measured' (here). ``main``: the paper's claims are about it."""

    name: str
    cells: Sequence[Cell]
    kind: str = 'published'
    note: str = ''
    main: bool = False


@dataclass(frozen=True)
class Table:
    """A table. ``columns``: headings after the name. ``split``: columns before which a line is drawn."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Row]
    split: Sequence[int] = ()


@dataclass(frozen=True)
class Listing:
    """A plain table of text: ``columns`` headings and ``rows`` of cells; shown folded when ``fold``."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    fold: bool = True


@lru_cache(maxsize=1)
def published() -> Mapping[str, Any]:
    """Content of ``config/suites/published.yaml``."""
    data = yaml.safe_load(config_file('suites/published.yaml').read_text(encoding='utf-8'))
    if not isinstance(data, dict):
        raise ConfigError('config/suites/published.yaml is damaged: install the package again')
    return data


def number(value: float | None, digits: int = 1) -> str:
    """Number with fixed decimals, an en dash for what was not published."""
    return NOT_PUBLISHED if value is None else f'{value:.{digits}f}'.replace('-', '\N{MINUS SIGN}')


def mark_best(rows: Sequence[Row], values: Sequence[Sequence[float | None]]) -> list[Row]:
    """Rows whose best cell per column carries the class 'best'; ``values`` has the numbers of the cells."""
    columns = list(zip(*values, strict=True))
    best = [max((v for v in column if v is not None), default=None) for column in columns]
    out = []
    for row, own in zip(rows, values, strict=True):
        cells = [
            Cell(c.text, c.note, 'best') if v is not None and v == b else c
            for c, v, b in zip(row.cells, own, best, strict=True)
        ]
        out.append(Row(row.name, cells, row.kind, row.note, row.main))
    return out


def render(
    title: str,
    kicker: str,
    lead: str,
    tables: Sequence[Table],
    listings: Sequence[Listing] = (),
    facts: Mapping[str, Any] | None = None,
    command: str = '',
) -> str:
    """HTML text of a page; no request to anywhere."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template('benchmark.html').render(
        title=title,
        kicker=kicker,
        lead=lead,
        tables=tables,
        listings=listings,
        facts=dict(facts or {}),
        command=command,
    )


def write_page(file: Path, text: str) -> Path:
    """Write a page in one step."""
    partial = file.with_name(f'.{file.name}.part')
    partial.write_text(text, encoding='utf-8')
    os.replace(partial, file)
    return file
