"""What a planner has to know of the cell: the table and the named boxes of the configuration, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from ..geometry import Array
from ..settings import Control, Embodiment
from .collision import TABLE


@dataclass(frozen=True)
class Box:
    """A box in the base frame.

    Attributes:
        name: of the object. size: (3,) along its own axes [m]. pose: (4, 4) of its centre [m]. touch_links: links
            that may touch it.
    """

    name: str
    size: Array
    pose: Array
    touch_links: tuple[str, ...]


def scene_boxes(embodiment: Embodiment, control: Control) -> tuple[Box, ...]:
    """Table first, then the obstacles of ``control.moveit``."""
    settings = control.moveit
    table = np.eye(4)
    table[:2, 3] = settings.table_center
    table[2, 3] = control.safety.table_height - 0.5 * settings.table_size[2]
    touching = tuple(f'{embodiment.name}_{link}' for link in settings.table_touch_links)
    boxes = [Box(TABLE, np.array(settings.table_size), table, touching)]
    for obstacle in settings.obstacles:
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler('xyz', obstacle.rpy).as_matrix()
        pose[:3, 3] = obstacle.position
        boxes.append(Box(obstacle.name, np.array(obstacle.size), pose, obstacle.touch_links))
    return tuple(boxes)


def allow_contacts(
    names: list[str], matrix: list[list[bool]], boxes: tuple[Box, ...]
) -> tuple[list[str], list[list[bool]]]:
    """An allowed collision matrix, square and by name, with the contacts these boxes permit added to it."""
    names = list(names)
    rows = [list(row) for row in matrix]
    for box in boxes:
        for name in (box.name, *box.touch_links):
            if name not in names:
                names.append(name)
                for row in rows:
                    row.append(False)
                rows.append([False] * len(names))
        k = names.index(box.name)
        for link in box.touch_links:
            j = names.index(link)
            rows[k][j] = rows[j][k] = True
    return names, rows
