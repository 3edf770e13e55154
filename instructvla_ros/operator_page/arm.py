"""The shapes of a robot description that can be drawn without meshes."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np

from ..errors import SetupError
from ..geometry import Array, pose_from_xyz_rpy

_PLAIN = (0.75, 0.77, 0.80)
_KINDS = ('box', 'cylinder', 'sphere', 'capsule')
_LARGEST = 4_000_000  # characters of a description


@dataclass(frozen=True)
class Solid:
    """One primitive of a link.

    Attributes:
        kind: box, cylinder, sphere or capsule (along z).
        size: (3,) [m]: full lengths of a box; radius, radius, length (of the straight part) of the others.
        origin: T_link_shape (4, 4) [m]. color: red green blue 0..1.
    """

    link: str
    kind: str
    size: tuple[float, float, float]
    origin: Array
    color: tuple[float, float, float]


def solids(urdf: str) -> tuple[Solid, ...]:
    """Primitives of each link: its visuals, where those are meshes its collision shapes, else nothing.

    Raises:
        SetupError: the text is no URDF.
    """
    if len(urdf) > _LARGEST or '<!DOCTYPE' in urdf or '<!ENTITY' in urdf:
        raise SetupError('the robot description is too long or declares entities; a plain URDF is needed')
    try:
        robot = ElementTree.fromstring(urdf)
        colors = {m.get('name', ''): _color(m) for m in robot.findall('material')}
        out: list[Solid] = []
        for link in robot.findall('link'):
            found = [s for v in link.findall('visual') for s in _shape(link, v, colors)]
            out += found or [s for c in link.findall('collision') for s in _shape(link, c, colors)]
    except (ElementTree.ParseError, ValueError) as err:
        raise SetupError(f'the robot description cannot be read: {err}') from None
    return tuple(out)


def bones(urdf: str, drawn: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """Pairs (parent, child) of links joined by a joint of which at least one is not in ``drawn``: drawn as lines.

    Raises:
        SetupError: the text is no URDF.
    """
    try:
        joints = ElementTree.fromstring(urdf).findall('joint')
    except ElementTree.ParseError as err:
        raise SetupError(f'the robot description cannot be read: {err}') from None
    pairs = []
    for joint in joints:
        parent, child = joint.find('parent'), joint.find('child')
        if parent is None or child is None or joint.get('type') == 'fixed':
            continue
        pair = (parent.get('link', ''), child.get('link', ''))
        if not set(pair) <= drawn:
            pairs.append(pair)
    return tuple(pairs)


def _shape(
    link: ElementTree.Element, element: ElementTree.Element, colors: dict[str, tuple[float, float, float] | None]
) -> list[Solid]:
    geometry = element.find('geometry')
    shape = next((s for s in geometry if s.tag in _KINDS), None) if geometry is not None else None
    if shape is None:
        return []
    if shape.tag == 'box':
        size = _numbers(shape.get('size'), 3)
    else:
        radius = _numbers(shape.get('radius'), 1)[0]
        size = [radius, radius, _numbers(shape.get('length', '0'), 1)[0]]
    origin = element.find('origin')
    where = [0.0] * 6
    if origin is not None:
        where = [*_numbers(origin.get('xyz', '0 0 0'), 3), *_numbers(origin.get('rpy', '0 0 0'), 3)]
    material = element.find('material')
    color = None
    if material is not None:
        color = _color(material) or colors.get(material.get('name', ''))
    return [Solid(link.get('name', ''), shape.tag, (size[0], size[1], size[2]), pose_from_xyz_rpy(where),
                  color or _PLAIN)]  # fmt: skip


def _color(material: ElementTree.Element) -> tuple[float, float, float] | None:
    color = material.find('color')
    if color is None:
        return None
    red, green, blue = _numbers(color.get('rgba'), 4)[:3]
    return red, green, blue


def _numbers(text: str | None, count: int) -> list[float]:
    values = [float(v) for v in (text or '').split()]
    if len(values) != count or not np.all(np.isfinite(values)):
        raise ValueError(f'{text!r} are not {count} finite numbers')
    return values
