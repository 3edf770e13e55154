"""What the scripted expert wants at one instant: the phase of the task, read off the state alone.

Order matters: what is already done is left alone first, so an object that was let go at its place is not taken
again; a wrong object in the hand is set down; then comes fetching, then carrying.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..datatypes import SceneObject, SceneState
from ..geometry import Array
from . import relations as rel
from .expert_grasp import GENTLE, free_place, grasp_of, release_of
from .expert_motion import FINGERTIP, Goal, clearance, wrap, yaw_of
from .scene import DRAWER_TRAVEL, HANDLE_HEIGHT, HANDLE_LENGTH, HANDLE_RADIUS, handle_position, opening_direction

MAX_WIDTH = 0.08
"""Opening of the hand [m] that openness 1 stands for."""
AT_GOAL = 0.008
"""Distance [m] at which the hand counts as being at a grasp."""
AT_PLACE, AT_STACK = 0.015, 0.006
"""Horizontal distance [m] at which a carried object counts as being at its place, and on a cube."""
LOW_ENOUGH = 0.006
"""The same in height [m]; small enough that the object is then ``placed``."""
LIFT = 0.12
"""Height [m] of a picked object's lowest point when the pick is done."""
PULLED, PUSHED = DRAWER_TRAVEL - 0.015, 0.003
"""Openings [m] at which the drawer is let go."""
FOLLOW_THROUGH = 0.03
"""How far beyond shut the hand aims [m]: it still moves when the drawer meets its stop; a learner would creep there."""


@dataclass(frozen=True)
class Intent:
    """Goal of the hand, openness (0 or 1), name of the phase, a first-person sentence, whether all is done."""

    goal: Goal
    openness: float
    phase: str
    sentence: str
    done: bool = False


def decide(scene: SceneState) -> Intent:
    """What to do now. Task, target and destination are those of ``scene``."""
    target = scene.objects[scene.target]
    if scene.task in ('open_drawer', 'close_drawer'):
        wrong = _wrong_in_hand(scene, target.name)
        return wrong or _drawer(scene, target, scene.task == 'open_drawer')
    if scene.task == 'pick':
        return _wrong_in_hand(scene, target.name) or (
            _lift(scene, target) if scene.held == target.name else _fetch(scene, target)
        )
    destination = scene.objects[scene.destination]
    relation = relation_of(scene.task, destination)
    held = scene.held == target.name
    if not held and rel.placed(target, destination, relation):
        return _leave(scene, target, destination, relation)
    if destination.category == 'drawer' and destination.opening < 0.8 * PULLED:
        # Also with the target in hand: the drawer needs both fingers.
        return _wrong_in_hand(scene, destination.name) or _drawer(scene, destination, True)
    if not held:
        return _wrong_in_hand(scene, target.name) or _fetch(scene, target)
    return _carry(scene, target, destination, relation)


def relation_of(task: str, destination: SceneObject) -> str:
    """'near', 'on' or 'in', as it follows from the task and the kind of destination."""
    if task == 'move_near':
        return 'near'
    return 'on' if task == 'stack' or destination.category == 'plate' else 'in'


def fingers_at(scene: SceneState) -> float:
    """Openness at which closing fingers stop: at the object between them, else 0."""
    for obj in scene.objects.values():
        point, width = obj.pose[:3, 3], float(min(obj.extent[0], obj.extent[1]))
        if obj.category == 'drawer':
            point, width = handle_position(obj), 2 * HANDLE_RADIUS
        elif obj.category not in ('cube', 'ball', 'cylinder'):
            continue
        if float(np.linalg.norm(scene.tcp_pose[:3, 3] - point)) < 0.02:
            return width / MAX_WIDTH
    return 0.0


def name_of(obj: SceneObject) -> str:
    """Words for an object, such as 'the red cube'."""
    return ' '.join(w for w in ('the', obj.color, obj.category) if w)


def _fetch(scene: SceneState, target: SceneObject) -> Intent:
    grasp = grasp_of(target, scene.objects, yaw_of(scene.tcp_pose))
    name = name_of(target)
    offset = grasp.xyz - scene.tcp_pose[:3, 3]
    turned = abs(wrap(grasp.yaw - yaw_of(scene.tcp_pose)))
    # Fingers on their way are not called back for a little distance.
    near = AT_GOAL if scene.gripper > 0.9 else 2.0 * AT_GOAL
    at = float(np.hypot(offset[0], offset[1])) < near and abs(offset[2]) < near and turned < 0.2
    meets = grasp.width / MAX_WIDTH
    if at and scene.gripper > meets - 0.12:
        # Stay where the fingers are: correcting while they close would drag the object.
        here = Goal(np.array(scene.tcp_pose[:3, 3]), grasp.yaw)
        return Intent(here, 0.0, 'close', f'I will close the gripper on {name}.')
    clear = max(
        clearance(scene.tcp_pose[:3, 3], grasp.xyz, scene.objects.values(), FINGERTIP),
        rel.top(target) + 0.05,
    )
    # Needs room for the object and for an error; fully closed fingers at the object have missed it.
    shut = scene.gripper < min(0.9, meets + 0.2)
    goal = Goal(grasp.xyz, grasp.yaw, clear, blocked=shut)
    low = clear - scene.tcp_pose[2, 3] > 0.02
    phase = 'open' if shut and low else ('descend' if low else 'approach')
    words = {
        'open': f'I will open the gripper and try again to grasp {name}.',
        'descend': f'I will move down to {name} and grasp it.',
        'approach': f'I will move above {name}, close the gripper on it and lift it.',
    }
    return Intent(goal, 1.0, phase, words[phase])


def _lift(scene: SceneState, target: SceneObject) -> Intent:
    height = LIFT - rel.bottom(target)
    goal = scene.tcp_pose[:3, 3] + np.array([0.0, 0.0, height])
    return Intent(Goal(goal), 0.0, 'lift', f'I will lift {name_of(target)} and hold it.', done=height < 0.02)


def _carry(scene: SceneState, target: SceneObject, destination: SceneObject, relation: str) -> Intent:
    name, where = name_of(target), f'{ {"in": "into", "on": "onto"}.get(relation, "near") } {name_of(destination)}'
    tcp = scene.tcp_pose[:3, 3]
    try:
        place, yaw = release_of(scene, target, destination, relation)
    except LookupError:
        place, yaw = np.array([*free_place(scene, target), rel.half_height(target) + GENTLE]), yaw_of(scene.tcp_pose)
    offset = place - target.pose[:3, 3]
    close = AT_STACK if scene.task == 'stack' else AT_PLACE
    if float(np.hypot(offset[0], offset[1])) < close and offset[2] > -LOW_ENOUGH:
        return Intent(Goal(tcp), 1.0, 'release', f'I will open the gripper to leave {name} {where}.')
    hang = max(FINGERTIP, float(tcp[2]) - rel.bottom(target))
    others = [o for o in scene.objects.values() if o.name != target.name]
    goal = tcp + offset
    clear = max(clearance(tcp, goal, others, hang), float(goal[2]) + 0.04)
    near = float(np.hypot(offset[0], offset[1])) < 0.04
    words = f'I will lower {name} {where}.' if near else f'I will carry {name} {where} and let it go.'
    return Intent(Goal(goal, yaw, clear), 0.0, 'lower' if near else 'carry', words)


def _leave(scene: SceneState, target: SceneObject, destination: SceneObject, relation: str) -> Intent:
    """The object is at its place: open, go straight up, and wait."""
    name, tcp = name_of(target), scene.tcp_pose[:3, 3]
    where = f'{relation} {name_of(destination)}'
    top = max(rel.top(target), rel.top(destination) if relation != 'near' else 0.0)
    up = np.array([tcp[0], tcp[1], max(float(tcp[2]), top + 0.09)])
    aside = float(np.hypot(*(tcp[:2] - target.pose[:2, 3]))) > 0.12
    wide = scene.gripper > min(0.95, float(min(target.extent[:2])) / MAX_WIDTH + 0.25)
    if not wide and not aside:
        return Intent(Goal(tcp), 1.0, 'release', f'I will open the gripper to leave {name} {where}.')
    done = up[2] - tcp[2] < 0.02 or aside
    return Intent(
        Goal(up if not aside else tcp), 1.0, 'retreat', f'{_capital(name)} is {where}; I will move the hand away.', done
    )


def _drawer(scene: SceneState, drawer: SceneObject, opening: bool) -> Intent:
    handle, along = handle_position(drawer), opening_direction(drawer)
    tcp, words = scene.tcp_pose[:3, 3], ('pull', 'open') if opening else ('push', 'shut')
    heading = float(np.arctan2(drawer.pose[1, 0], drawer.pose[0, 0]))
    offset = handle - tcp
    gripped = scene.gripper < 2 * HANDLE_RADIUS / MAX_WIDTH + 0.12
    reached = drawer.opening >= PULLED if opening else drawer.opening <= PUSHED
    enough = drawer.opening >= 0.8 * PULLED if opening else drawer.opening <= 2 * PUSHED
    if reached or (enough and not gripped):
        return _let_go_of_handle(scene, handle, words[1])
    meets = 2 * HANDLE_RADIUS / MAX_WIDTH
    turned = abs(wrap(heading - yaw_of(scene.tcp_pose)))
    at = float(np.hypot(offset[0], offset[1])) < 0.015 and abs(offset[2]) < 0.015 and turned < 0.2
    if at and scene.held == drawer.name and gripped:
        left = (DRAWER_TRAVEL if opening else -FOLLOW_THROUGH) - drawer.opening
        # The hand follows the handle sideways and stays level, the rest is along the drawer.
        end = np.array([*(handle[:2] + along[:2] * left), tcp[2]])
        return Intent(
            Goal(end, heading, slow=0.6), 0.0, words[0], f'I will {words[0]} the drawer {words[1]} by its handle.'
        )
    if at and scene.gripper > meets - 0.12:
        return Intent(
            Goal(np.array(tcp), heading), 0.0, 'close', 'I will close the gripper on the handle of the drawer.'
        )
    clear = max(
        clearance(tcp, handle, scene.objects.values(), FINGERTIP, margin=0.02),
        HANDLE_HEIGHT + HANDLE_LENGTH / 2 + 0.03,
    )
    shut = scene.gripper < 0.8
    goal = Goal(_array(handle[0], handle[1], HANDLE_HEIGHT), heading, clear, blocked=shut)
    return Intent(
        goal, 1.0, 'approach', f'I will move above the handle, grasp it and {words[0]} the drawer {words[1]}.'
    )


def _let_go_of_handle(scene: SceneState, handle: Array, state: str) -> Intent:
    tcp = scene.tcp_pose[:3, 3]
    near = float(np.hypot(*(handle[:2] - tcp[:2]))) < 0.08 and tcp[2] < HANDLE_HEIGHT + HANDLE_LENGTH
    if near and scene.gripper < 0.8:
        return Intent(Goal(tcp), 1.0, 'release', f'The drawer is {state}; I will let go of the handle.')
    up = _array(tcp[0], tcp[1], max(float(tcp[2]), 0.16 if near or tcp[2] < 0.16 else 0.0))
    return Intent(
        Goal(up), 1.0, 'retreat', f'The drawer is {state}; I will move the hand away.', done=up[2] - tcp[2] < 0.02
    )


def _wrong_in_hand(scene: SceneState, wanted: str) -> Intent | None:
    """Set down on the table whatever else is between the fingers."""
    obj = scene.objects.get(scene.held)
    if obj is None or obj.name == wanted:
        return None
    tcp, name = scene.tcp_pose[:3, 3], name_of(obj)
    if obj.category not in ('cube', 'ball', 'cylinder'):
        return Intent(Goal(tcp), 1.0, 'release', f'I will let go of {name}.')
    xy, bottom = free_place(scene, obj), rel.bottom(obj)
    if bottom < 2 * GENTLE and float(np.hypot(*(xy - tcp[:2]))) < 0.05:
        return Intent(Goal(tcp), 1.0, 'release', f'I will let go of {name}; it is not what was asked for.')
    goal = _array(xy[0], xy[1], float(tcp[2]) - bottom + GENTLE)
    others = [o for o in scene.objects.values() if o.name != obj.name]
    clear = clearance(tcp, goal, others, max(FINGERTIP, float(tcp[2]) - bottom))
    return Intent(
        Goal(goal, None, max(clear, float(goal[2]))),
        0.0,
        'put_back',
        f'I will put {name} down; it is not what was asked for.',
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _array(x: float, y: float, z: float) -> Array:
    return np.array([x, y, z], dtype=np.float64)
