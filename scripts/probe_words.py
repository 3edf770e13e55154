#!/usr/bin/env python3
"""Does a checkpoint understand? Its sentences for unseen scenes, without any motion: minutes instead of an hour.

    python scripts/probe_words.py --checkpoint models/tiny --scenes 60

For every scene, a few instructions of each family and book; counted is how often the sentence names the object that is
meant. Held-out against training wordings tells words from pictures: a model that fails on both does not see, one that
fails on the held-out ones alone does not read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from instructvla_ros import camera_view, config, resources
from instructvla_ros.datatypes import Observation
from instructvla_ros.errors import InstructVLAError
from instructvla_ros.evaluation.suite_cell import names_target
from instructvla_ros.evaluation.suites import TEST_SEED
from instructvla_ros.policy import make_policy
from instructvla_ros.settings import Embodiment, PolicySettings, Sim
from instructvla_ros.sim.annotations import FAMILIES, instructions
from instructvla_ros.sim.tasks import Episode, make_episode
from instructvla_ros.sim.world import World

BOOKS = ('train', 'held_out')


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--checkpoint', default='models/tiny')
    add('--scenes', type=int, default=60, help='of pick and put in turn, from seeds that no training uses')
    add('--first', type=int, default=TEST_SEED + 50_000, help='seed of the first scene')
    add('--kinds', type=int, default=3, help='instructions per scene, family and book, each by another rule')
    add('--show', type=int, default=0, help='print so many mistakes')
    add('--json', type=Path, help='write the numbers to a file')
    return parser.parse_args(argv)


def asked(episode: Episode, kinds: int) -> Iterator[tuple[str, str, str, str]]:
    """(family, book, rule, instruction) for one scene; rules are drawn first, as in the suites."""
    for family in FAMILIES:
        for book in BOOKS[1:] if family == 'plain' else BOOKS:
            rng = np.random.default_rng([episode.seed, len(family), len(book)])
            phrases = instructions(episode, family, rng, book)
            found = sorted({p.kind for p in phrases})
            for kind in rng.permutation(found)[: 1 if family == 'plain' else kinds]:
                group = [p for p in phrases if p.kind == kind]
                yield family, '' if family == 'plain' else book, str(kind), group[int(rng.integers(len(group)))].text


def main(argv: list[str] | None = None) -> int:
    """Ask, count, print."""
    args = arguments(argv)
    sim, robot = (
        config.load(kind, resources.config_file(f)) for kind, f in ((Sim, 'sim.yaml'), (Embodiment, 'franka.yaml'))
    )
    settings = PolicySettings(policy='instructvla', checkpoint=args.checkpoint)
    policy, world = make_policy(settings, robot), World(sim, robot)
    score: dict[tuple[str, str], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    mistakes = []
    for k in tqdm(range(args.scenes), unit='scene', disable=None):
        episode = make_episode(('pick', 'put')[k % 2], args.first + k, randomization=sim.randomization)
        world.reset(episode.scene)
        views = {v: camera_view.prepare(robot.views[v], world.render(v)) for v in robot.views}
        for family, book, kind, text in asked(episode, args.kinds):
            policy.reset()
            seen = Observation(1, views, np.zeros(8), np.asarray(robot.home), np.zeros(7), robot.base_frame, text)
            said = policy.think(seen)
            right = said is not None and names_target(episode, said.text)
            score[family, book][kind].append(right)
            if not right:
                mistakes.append((book, kind, text, said.text if said else '', episode.instruction))
    for book, kind, text, said, plain in mistakes[: args.show]:
        print(f'{book} {kind}: {text!r} -> {said!r}, meant: {plain!r}', file=sys.stderr)
    table = {
        ' '.join(key).strip(): {kind: [sum(rows), len(rows)] for kind, rows in sorted(kinds.items())}
        for key, kinds in score.items()
    }
    for name, kinds in table.items():
        good, all_ = (sum(v[i] for v in kinds.values()) for i in (0, 1))
        print(
            f'{name}: {good}/{all_} = {good / all_:.0%}   ' + ', '.join(f'{k} {a}/{b}' for k, (a, b) in kinds.items())
        )
    if args.json:
        args.json.write_text(json.dumps(table, indent=1) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    try:
        raise SystemExit(main())
    except InstructVLAError as error:
        raise SystemExit(f'probe_words: {error}') from None
