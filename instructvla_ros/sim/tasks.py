"""The tabletop tasks: from a name or a sentence and a seed to a scene, its sentence and its time limit.

Everything is drawn from (task, seed), so an episode can be made again anywhere. What is asked for is always unique
in its scene by the words of the sentence, and never already done. :mod:`monitor` scores a running episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import TaskError, suggest
from ..settings import Randomization
from . import scene as sc
from .language import Command, Description, parse, render
from .relations import REACH_X, REACH_Y, gap, near_spot, scene_objects


@dataclass(frozen=True)
class TaskType:
    """A kind of task.

    Attributes:
        summary: one line for people. time_limit: [s]. example: a sentence that asks for it.
    """

    name: str
    summary: str
    time_limit: float
    example: str


TASKS: dict[str, TaskType] = {
    t.name: t
    for t in (
        TaskType('pick', 'lift an object at least 5 cm', 25.0, 'pick up the red cube'),
        TaskType(
            'put', 'put an object in a bowl or an open drawer, or on a plate', 40.0, 'put the red cube in the bowl'
        ),
        TaskType('move_near', 'set an object down within 8 cm of another', 40.0, 'move the red cube near the plate'),
        TaskType('stack', 'put a cube on another cube', 40.0, 'stack the red cube on the green cube'),
        TaskType('open_drawer', 'pull the drawer at least 10 cm open', 40.0, 'open the drawer'),
        TaskType('close_drawer', 'push the drawer shut', 40.0, 'close the drawer'),
    )
}

NEAR_START_GAP = 0.14
"""Smallest free space at the start of move_near [m]."""
PALM_ROOM = 0.03
"""Room between a target and a drawer on top of what :func:`scene.keepout` leaves, for the palm of the hand [m]."""


@dataclass(frozen=True)
class Episode:
    """One task in one scene.

    Attributes:
        target, destination: names of objects of ``scene``, destination '' when there is none.
        relation: 'in', 'on', 'near' or ''. time_limit: [s].
    """

    task: str
    seed: int
    instruction: str
    target: str
    destination: str
    relation: str
    time_limit: float
    scene: sc.SceneSpec


def make_episode(task: str, seed: int, instruction: str = '', randomization: Randomization | None = None) -> Episode:
    """Episode ``seed`` of a task; with an instruction, one whose scene fits it.

    Raises:
        TaskError: unknown task, or an instruction that is not understood or asks for another task.
    """
    if task not in TASKS:
        raise TaskError(f'unknown task {task!r}.{suggest(task, TASKS)}')
    if seed < 0:
        raise TaskError(f'seed {seed}: use a whole number from 0')
    command = parse(instruction) if instruction.strip() else None
    if command is not None and command.task != task:
        raise TaskError(f'{instruction!r} asks for the task {command.task!r}, not {task!r}. Leave one of the two out')
    rng = np.random.default_rng([list(TASKS).index(task), seed])
    return _build(task, seed, command, instruction.strip(), randomization or Randomization(), rng)


def episode_from_instruction(instruction: str, seed: int, randomization: Randomization | None = None) -> Episode:
    """Episode whose task and objects come from a free sentence.

    Raises:
        TaskError: the sentence is not understood; the message names the nearest valid words.
    """
    return make_episode(parse(instruction).task, seed, instruction, randomization)


def _build(
    task: str,
    seed: int,
    command: Command | None,
    instruction: str,
    randomization: Randomization,
    rng: np.random.Generator,
) -> Episode:
    command = command or _sample_command(task, rng)
    target, destination = _fill(command, rng)
    if not instruction:
        instruction = render(command, rng)
    named = [Description(s.category, s.color, s.size) for s in (target, destination) if s is not None]
    said = [d for d in (command.target, command.destination) if d is not None]
    extras = _distractors(said, named, randomization, rng)
    for _ in range(40):
        specs = _arranged(task, target, destination, extras, rng, randomization)
        if specs is not None:
            break
    else:
        raise TaskError(
            f'{instruction!r} with {len(extras)} distractors does not fit on the table; ask for fewer distractors'
        )
    scene = sc.SceneSpec(objects=specs, look=sc.sample_look(rng, randomization), seed=seed)
    return Episode(
        task=task,
        seed=seed,
        instruction=instruction,
        target=specs[0].name,
        destination=specs[1].name if destination is not None else '',
        relation=command.relation,
        time_limit=TASKS[task].time_limit,
        scene=scene,
    )


def _sample_command(task: str, rng: np.random.Generator) -> Command:
    if task in ('open_drawer', 'close_drawer'):
        return Command(task, Description('drawer'))
    colors = [str(c) for c in rng.permutation(list(sc.COLORS))]
    category = 'cube' if task == 'stack' else _pick(rng, sc.GRASPABLE, (0.5, 0.25, 0.25))
    size = _pick(rng, tuple(sc.SIZES)) if rng.random() < 0.3 else ''
    target = Description(category, colors[0], size)
    if task == 'pick':
        return Command(task, target)
    if task == 'put':
        where = _pick(rng, sc.CONTAINERS)
        # Half of the time the place is named without its colour, as people do when there is only one.
        color = colors[1] if rng.random() < 0.5 else ''
        return Command(task, target, Description(where, color), 'on' if where == 'plate' else 'in')
    if task == 'stack':
        return Command(task, target, Description('cube', colors[1]), 'on')
    near = Description(_pick(rng, (*sc.GRASPABLE, *sc.CONTAINERS)), colors[1])
    return Command(task, target, near, 'near')


def _fill(command: Command, rng: np.random.Generator) -> tuple[sc.ObjectSpec, sc.ObjectSpec | None]:
    """Objects that fit what was said, with everything unsaid drawn at random."""
    wanted = command.destination
    for _ in range(200):
        target = _object(command.target, rng)
        if wanted is None:
            return target, None
        destination = _object(wanted, rng)
        if command.task == 'stack' and sc.SIZES[destination.size] < sc.SIZES[target.size]:
            if wanted.size and command.target.size:
                raise TaskError(f'{command.target} is larger than {wanted}; stack the smaller on the larger')
            continue
        if not wanted.matches(target.category, target.color, target.size) and not command.target.matches(
            destination.category, destination.color, destination.size
        ):
            return target, destination
    raise TaskError(
        f'{command.target} and {wanted} may be the same object; name the colour of both so that they differ'
    )


def _object(said: Description, rng: np.random.Generator) -> sc.ObjectSpec:
    category = said.category or _pick(rng, sc.GRASPABLE)
    color = said.color or _pick(rng, tuple(sc.COLORS))
    size = said.size or _pick(rng, tuple(sc.SIZES), (0.25, 0.5, 0.25))
    if category in sc.GRASPABLE:
        return sc.make_object(category, color, size)
    if said.size:
        raise TaskError(f'{said}: bowls, plates and the drawer come in one size; leave {said.size!r} out')
    if category == 'drawer' and said.color:
        raise TaskError(f'{said}: there is one drawer and it has no colour word; say "the drawer"')
    return sc.make_object(category, '' if category == 'drawer' else color)


def _distractors(
    said: Sequence[Description], named: Sequence[Description], randomization: Randomization, rng: np.random.Generator
) -> list[sc.ObjectSpec]:
    """Objects that no words of the sentence fit; one may differ from the target in size only, when size was said."""
    out: list[sc.ObjectSpec] = []
    count, alike = randomization.distractors, randomization.alike
    drawer = any(d.category == 'drawer' for d in named)
    categories = (
        [*sc.GRASPABLE]
        if drawer
        else [*sc.GRASPABLE, *(c for c in sc.CONTAINERS if all(n.category != c for n in named))]
    )
    if count and said[0].size and rng.random() < 0.5:
        others = tuple(s for s in sc.SIZES if s != said[0].size)
        out.append(sc.make_object(named[0].category, named[0].color, _pick(rng, others)))
    while len(out) < count:
        category = _pick(rng, tuple(categories))
        color, size = _pick(rng, tuple(sc.COLORS)), _pick(rng, tuple(sc.SIZES)) if category in sc.GRASPABLE else ''
        # Nothing is drawn for it where it is off, so that seeds keep their scenes.
        if alike and category in sc.GRASPABLE and rng.random() < alike:
            color = named[0].color or color
        spec = sc.make_object(category, color, size)
        if any(d.matches(spec.category, spec.color, spec.size) for d in said):
            continue
        out.append(spec)
        if category in sc.CONTAINERS:
            categories = list(sc.GRASPABLE)
    return out


def _arranged(
    task: str,
    target: sc.ObjectSpec,
    destination: sc.ObjectSpec | None,
    extras: Sequence[sc.ObjectSpec],
    rng: np.random.Generator,
    randomization: Randomization,
) -> tuple[sc.ObjectSpec, ...] | None:
    """Target, destination, distractors at places where the task can be done; None when this draw has none."""
    main = [target] if destination is None else [target, destination]
    free = [o for o in main if o.category != 'drawer']
    fixed = [_stand_drawer(task, rng) for o in main if o.category == 'drawer']
    try:
        standing = sc.arrange(rng, [*free, *extras], fixed, x=REACH_X, y=REACH_Y)
    except TaskError:
        return None
    if fixed and free and sc.overlaps(standing[0], fixed[0], PALM_ROOM):
        return None
    moved = {id(o): s for o, s in zip([*free, *extras], standing, strict=False)}
    ordered = [moved[id(o)] if id(o) in moved else fixed[0] for o in (*main, *extras)]
    specs = sc.with_unique_names(_tint(o, rng, randomization.color) for o in ordered)
    if task == 'move_near':
        objects = scene_objects(sc.SceneSpec(specs))
        a, b = objects[specs[0].name], objects[specs[1].name]
        if gap(a, b) < NEAR_START_GAP or near_spot(objects, a, b) is None:
            return None
    return specs


def _stand_drawer(task: str, rng: np.random.Generator) -> sc.ObjectSpec:
    if task == 'open_drawer':
        opening = 0.0
    elif task == 'close_drawer':
        opening = float(rng.uniform(0.09, sc.DRAWER_TRAVEL))
    else:
        opening = sc.DRAWER_TRAVEL
    xy = (float(rng.uniform(0.70, 0.73)), float(rng.uniform(-0.14, 0.14)))
    return sc.make_object('drawer', xy=xy, yaw=float(rng.uniform(-0.2, 0.2)), opening=opening)


def _tint(spec: sc.ObjectSpec, rng: np.random.Generator, jitter: float) -> sc.ObjectSpec:
    shift = rng.uniform(-jitter, jitter, 3)
    if spec.category == 'drawer':
        return spec
    r, g, b = np.clip(np.asarray(spec.rgb) + shift, 0.01, 0.98)
    return replace(spec, rgb=(float(r), float(g), float(b)))


def _pick(rng: np.random.Generator, names: Sequence[str], weights: Sequence[float] | None = None) -> str:
    return str(rng.choice(list(names), p=list(weights) if weights else None))
