"""What the episode node is given and what it writes: its parameters, the list of episodes, results and events."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import option
from ..errors import ConfigError
from ..evaluation import runlog


@dataclass(frozen=True)
class EpisodeSettings:
    """Parameters of the episode node."""

    episodes: str = option('', 'file with one JSON object per line: task, seed, instruction')
    output: str = option(
        '', 'folder for results; recordings go there when there is one episode, else into episode_<n>/'
    )
    record: bool = option(False, 'keep the recording of every episode')
    video: bool = option(True, 'record the cameras too')
    control_rate: float = option(
        0.0, 'nominal rate of the controller, for the jitter; 0: its median', unit='Hz', ge=0.0
    )
    ready_timeout: float = option(60.0, 'how long the graph may take to come up', unit='s', ge=1.0, le=3600.0)
    time_limit: float = option(0.0, 'time limit of an episode; 0: that of the task', unit='s', ge=0.0, le=3600.0)
    stop_every: int = option(0, 'stop the arm in the middle of every n-th episode, as a drill; 0: never', ge=0)
    stop_after: float = option(2.5, 'when in the episode the drill comes', unit='s', ge=0.0, le=60.0)
    sim_speed: float = option(1.0, 'simulated seconds per second, as the simulator has it', ge=0.01, le=100.0)
    settle: float = option(0.6, 'time between the end of a goal and the judgement', unit='s', ge=0.0, le=60.0)


def read_episodes(file: Path) -> list[dict[str, Any]]:
    """Episodes of a file with one JSON object per line.

    Raises:
        ConfigError: unreadable, empty, or a line is not an object.
    """
    try:
        rows = [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines() if line.strip()]
    except (OSError, ValueError) as err:
        raise ConfigError(f'episodes {file}: {err}') from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f'episodes {file}: at least one JSON object with task, seed, instruction is needed')
    return rows


def append_json(file: Path, row: dict[str, Any]) -> None:
    """Append one line of strict JSON and push it to the disk."""
    with file.open('a', encoding='utf-8') as out:
        out.write(json.dumps(runlog.plain(row), allow_nan=False) + '\n')
        out.flush()
        os.fsync(out.fileno())


def emit(event: str, **fields: Any) -> None:
    """One event as a JSON line on standard output."""
    try:
        sys.stdout.write(json.dumps(runlog.plain({'event': event, **fields}), allow_nan=False) + '\n')
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # nobody listens any more: the parent is about to stop us
