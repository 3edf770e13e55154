"""Pass or fail of a replay: limits on its numbers, faults that may not be found; JUnit XML of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .. import config
from ..config import option
from ..errors import ConfigError, suggest
from .replay_diagnosis import FAULT, UNKNOWN, Diagnosis

FAULTS = (
    'gripper_inverted',
    'action_delay',
    'rotation_convention',
    'axes_mixed',
    'wrong_scale',
    'stays_at_start',
    'no_better_than_mean',
)
PASSED, FAILED, SKIPPED = 'passed', 'failed', 'skipped'


@dataclass(frozen=True)
class Limit:
    """Range of one number."""

    min: float = option(-float('inf'), 'smallest value that passes')
    max: float = option(float('inf'), 'largest value that passes')

    def __post_init__(self) -> None:
        if self.min > self.max:
            raise ConfigError(f'limit: min {self.min} is above max {self.max}')


@dataclass(frozen=True)
class Limits:
    """What a replay has to keep (config/replay.yaml)."""

    limits: dict[str, Limit] = option({}, 'range by dotted name of a number in metrics.json')
    faults: tuple[str, ...] = option((), 'faults that may not be found', choices=FAULTS)


@dataclass(frozen=True)
class Check:
    """Outcome of one limit or one test for a fault.

    Attributes:
        result: passed, failed, or skipped when the recording cannot tell. text: with the numbers.
    """

    name: str
    result: str
    text: str


def load_limits(file: str | Path) -> Limits:
    """Read limits from YAML.

    Raises:
        ConfigError: not readable, or a key or value is not allowed.
    """
    return config.load(Limits, file)


def check(limits: Limits, metrics: Mapping[str, Any], diagnoses: Sequence[Diagnosis]) -> list[Check]:
    """Hold a replay against its limits.

    Raises:
        ConfigError: a limit names a number that metrics do not have (with the nearest names).
    """
    out = []
    known = numbers(metrics)
    for name, limit in limits.limits.items():
        if name not in known:
            raise ConfigError(f'limit {name!r}: there is no such number.{suggest(name, known)}')
        value = known[name]
        if value is None:
            out.append(Check(name, SKIPPED, 'not measurable on this recording'))
            continue
        good = limit.min <= value <= limit.max
        sides = [f'at least {limit.min:g}'] * (limit.min > -float('inf'))
        sides += [f'at most {limit.max:g}'] * (limit.max < float('inf'))
        out.append(Check(name, PASSED if good else FAILED, f'{value:.4g}, allowed {" and ".join(sides) or "anything"}'))
    by_name = {d.name: d for d in diagnoses}
    for name in limits.faults:
        found = by_name.get(name)
        if found is None:
            out.append(Check(name, SKIPPED, 'not tested'))
            continue
        result = {FAULT: FAILED, UNKNOWN: SKIPPED}.get(found.result, PASSED)
        advice = f'; {found.advice}' if result == FAILED and found.advice else ''
        out.append(Check(name, result, f'{found.text}{advice}'))
    return out


def numbers(metrics: Mapping[str, Any], prefix: str = '') -> dict[str, float | None]:
    """Every single number of the metrics by its dotted name; None for what was not measurable."""
    out: dict[str, float | None] = {}
    for key, value in metrics.items():
        name = f'{prefix}{key}'
        if isinstance(value, Mapping):
            out |= numbers(value, f'{name}.')
        elif value is None or isinstance(value, (bool, int, float)):
            out[name] = None if value is None or value != value else float(value)
    return out


def junit(results: Mapping[str, Sequence[Check]], seconds: Mapping[str, float] | None = None) -> str:
    """JUnit XML: one suite per recording, one case per check."""
    every = [c for checks in results.values() for c in checks]

    def counts(checks: Sequence[Check]) -> dict[str, str]:
        return {
            'tests': str(len(checks)),
            'failures': str(sum(c.result == FAILED for c in checks)),
            'skipped': str(sum(c.result == SKIPPED for c in checks)),
        }

    root = ElementTree.Element('testsuites', {'name': 'instructvla replay', **counts(every)})
    for name, checks in results.items():
        time = f'{(seconds or {}).get(name, 0.0):.3f}'
        about = {'name': _printable(name), 'time': time, 'errors': '0', **counts(checks)}
        suite = ElementTree.SubElement(root, 'testsuite', about)
        for c in checks:
            case = ElementTree.SubElement(suite, 'testcase', classname=_printable(name), name=c.name, time='0')
            if c.result != PASSED:
                tag = 'failure' if c.result == FAILED else 'skipped'
                ElementTree.SubElement(case, tag, message=_printable(c.text))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding='unicode', xml_declaration=True) + '\n'


def _printable(text: str) -> str:
    """XML has no way to write control characters, and names of bags come from elsewhere."""
    return ''.join(c if c.isprintable() else '\N{REPLACEMENT CHARACTER}' for c in text)
