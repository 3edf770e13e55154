"""``--instructions FILE``: sentences of one's own, each with its scene and what it means.

Entries have the keys :data:`KEYS`. Without ``task`` it is put when there is a destination, else pick. With ``seed``
the scene is that of this seed of the task, and so is what is not named of target and destination. ``scene`` lists
objects, which find their places by the seed or stand ``at`` [x, y] m. Example:

- {sentence: give me what a clown wears on his nose, seed: 38, target: red ball}
- sentence: tidy the toy into what you eat soup from
  scene: [red cube, small blue ball, {object: white bowl, at: [0.55, 0.1]}]
  target: red cube
  destination: white bowl
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..errors import ConfigError, TaskError, suggest
from ..settings import Randomization
from ..sim import scene as sc
from ..sim.expert_phases import relation_of
from ..sim.language import COLORS, NOUNS, SIZES
from ..sim.relations import REACH_X, REACH_Y, scene_objects
from ..sim.tasks import TASKS, Episode, make_episode
from .suites import Case, Variant

SUITE = 'own'
KEYS = ('sentence', 'task', 'seed', 'scene', 'target', 'destination')


def read_sentences(file: str | Path, base: Randomization) -> list[Case]:
    """Cases of a file of sentences.

    Raises:
        ConfigError: the file is not readable or not a list of entries. TaskError: an entry has no scene or no object
            that fits; the message says which entry.
    """
    path = Path(file).expanduser()
    try:
        data = yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as err:
        raise ConfigError(f'cannot read {path}: {err.strerror}') from None
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError(f'{path} is not valid YAML: {err}') from None
    if not isinstance(data, list) or not data:
        raise ConfigError(f'{path}: expected a list of entries with the keys {", ".join(KEYS)}')
    out = []
    for number, entry in enumerate(data, 1):
        try:
            out.append(Case(SUITE, Variant(), _episode(entry, number, base), 'own'))
        except (TaskError, ConfigError) as err:
            raise type(err)(f'{path}, entry {number}: {err}') from None
    return out


def _episode(entry: Any, number: int, base: Randomization) -> Episode:
    if not isinstance(entry, Mapping):
        raise ConfigError(f'expected keys and values, got {entry!r}')
    for key in entry:
        if key not in KEYS:
            raise ConfigError(f'unknown key {key!r}.{suggest(str(key), KEYS)}')
    sentence = str(entry.get('sentence') or '').strip()
    if not sentence:
        raise ConfigError('the sentence is missing')
    task = str(entry.get('task') or ('put' if entry.get('destination') else 'pick'))
    if task not in TASKS:
        raise TaskError(f'unknown task {task!r}.{suggest(task, TASKS)}')
    seed = entry.get('seed', number)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f'seed {seed!r}: use a whole number from 0')
    if 'scene' in entry:
        start = _scene(entry, task, seed, base)
    elif 'seed' in entry:
        start = make_episode(task, seed, randomization=base)
    else:
        raise ConfigError('either seed or scene has to say what is on the table')
    names = {o.name for o in start.scene.objects}
    target = _find(start.scene, entry['target']) if entry.get('target') else start.target
    destination = _find(start.scene, entry['destination']) if entry.get('destination') else start.destination
    if target not in names:
        raise TaskError('the target is missing: name one of the objects of the scene')
    return _checked(replace(start, instruction=sentence, target=target, destination=destination))


def _checked(episode: Episode) -> Episode:
    objects = scene_objects(episode.scene)
    target = objects[episode.target]
    drawer = episode.task in ('open_drawer', 'close_drawer')
    if (target.category == 'drawer') != drawer or (not drawer and target.category not in sc.GRASPABLE):
        raise TaskError(f'{episode.target}: the task {episode.task} cannot be done with it')
    if episode.task not in ('put', 'stack', 'move_near'):
        return replace(episode, destination='', relation='')
    if episode.destination not in objects or episode.destination == episode.target:
        raise TaskError(f'the task {episode.task} needs a destination other than the target')
    goal = objects[episode.destination]
    fits = {
        'put': goal.category in (*sc.CONTAINERS, 'drawer'),
        'stack': goal.category == target.category == 'cube',
        'move_near': goal.category != 'drawer',
    }
    if not fits[episode.task]:
        raise TaskError(f'{episode.destination} is no destination for the task {episode.task}')
    return replace(episode, relation=relation_of(episode.task, goal))


def _scene(entry: Mapping[str, Any], task: str, seed: int, base: Randomization) -> Episode:
    listed = entry['scene']
    if not isinstance(listed, list) or not listed:
        raise ConfigError('scene: expected a list of objects such as [red cube, white bowl]')
    rng = np.random.default_rng([seed, len(listed)])
    fixed: list[sc.ObjectSpec] = []
    free: list[sc.ObjectSpec] = []
    for item in listed:
        words, at = (item.get('object'), item.get('at')) if isinstance(item, Mapping) else (item, None)
        said = read_words(str(words))
        if said.category not in sc.CATEGORIES:
            raise TaskError(f'{words!r}: a scene needs nouns.{suggest(str(words), sc.CATEGORIES)}')
        if said.category == 'drawer':
            fixed.append(sc.make_object('drawer', xy=(0.71, 0.0), opening=0.0 if task == 'open_drawer' else 0.14))
        elif at is None:
            free.append(sc.make_object(said.category, said.color, said.size))
        else:
            fixed.append(sc.make_object(said.category, said.color, said.size, _place(at)))
    for i, a in enumerate(fixed):
        for b in fixed[i + 1 :]:
            if sc.overlaps(a, b):
                raise TaskError(f'{a.name} and {b.name} stand too close to each other for an open hand')
    placed = sc.with_unique_names([*sc.arrange(rng, free, fixed, x=REACH_X, y=REACH_Y), *fixed])
    scene = sc.SceneSpec(placed, sc.sample_look(rng, base), seed)
    return Episode(task, seed, '', '', '', '', TASKS[task].time_limit, scene)


def _place(at: Any) -> tuple[float, float]:
    try:
        x, y = (float(v) for v in at)
    except (TypeError, ValueError):
        raise ConfigError(f'at: {at!r} is not a place; give [x, y] in metres in the base frame') from None
    for value, name, (low, high) in ((x, 'x', REACH_X), (y, 'y', REACH_Y)):
        if not low <= value <= high:
            raise ConfigError(f'at: {name} = {value} m, the arm works in {low} .. {high} m')
    return x, y


@dataclass(frozen=True)
class Words:
    """What a few words say about an object; empty where nothing is said."""

    category: str
    color: str
    size: str


def read_words(text: str) -> Words:
    """Meaning of words such as 'small red cube' or the name 'red_cube_2'.

    Raises:
        TaskError: an unknown word, with the nearest known ones.
    """
    found = {'category': '', 'color': '', 'size': ''}
    tables = (('category', NOUNS), ('color', COLORS), ('size', SIZES))
    for word in text.lower().replace('_', ' ').split():
        if word in ('the', 'a', 'an'):
            continue
        for field, table in tables:
            meaning = next((name for name, words in table.items() if word in words), None)
            if meaning is not None:
                found[field] = meaning
                break
        else:
            raise TaskError(f'unknown word {word!r} in {text!r}.{suggest(word, {*COLORS, *SIZES, *sc.CATEGORIES})}')
    return Words(**found)


def _find(scene: sc.SceneSpec, said: Any) -> str:
    text = str(said).strip()
    names = [o.name for o in scene.objects]
    if text in names:
        return text
    words = read_words(text)
    fits = [
        o.name
        for o in scene.objects
        if all(not w or w == has for w, has in zip(vars(words).values(), (o.category, o.color, o.size), strict=True))
    ]
    if len(fits) != 1:
        raise TaskError(f'{text!r} fits {len(fits)} objects of the scene; it has {", ".join(names)}')
    return fits[0]
