"""Semantic description (SRDF) of an arm for planners that want one, made of what the embodiment and the URDF say."""

from __future__ import annotations

from xml.etree import ElementTree

import pinocchio as pin

from ..errors import SetupError
from ..settings import Embodiment
from .collision import NEIGHBOURS


def semantic_description(embodiment: Embodiment, urdf: str, group: str) -> str:
    """SRDF text: the arm from base to tcp as one group, a hand group, and the bodies that touch by construction.

    Links at most ``NEIGHBOURS`` moving joints apart may touch, as in our own collision check; the fingers count to the
    hand. There is no virtual joint: the model frame is the root of the URDF.

    Raises:
        SetupError: the URDF cannot be read, or lacks base or tcp.
    """
    try:
        model = pin.buildModelFromXML(urdf)
        geometry = pin.buildGeomFromUrdfString(model, urdf, pin.GeometryType.COLLISION)
    except (ValueError, RuntimeError) as err:
        raise SetupError(f'the robot description cannot be read: {err}') from None
    names = [f.name for f in model.frames if f.type == pin.FrameType.BODY]
    for link in (embodiment.base_frame, embodiment.tcp_frame):
        if link not in names:
            raise SetupError(f'the robot description has no link {link!r}')
    root = ElementTree.Element('robot', name=embodiment.name)
    arm = ElementTree.SubElement(root, 'group', name=group)
    ElementTree.SubElement(arm, 'chain', base_link=embodiment.base_frame, tip_link=embodiment.tcp_frame)
    home = ElementTree.SubElement(root, 'group_state', name='ready', group=group)
    for joint, position in zip(embodiment.arm_joints, embodiment.home, strict=True):
        ElementTree.SubElement(home, 'joint', name=joint, value=f'{position:.6f}')
    if embodiment.gripper.joints:
        hand = ElementTree.SubElement(root, 'group', name=f'{embodiment.name}_hand')
        for joint in embodiment.gripper.joints:
            ElementTree.SubElement(hand, 'joint', name=joint)
    # Depth of a body: how many joints of the arm carry it. Fingers are carried by all of them, as the hand is.
    depth: dict[str, int] = {}
    for body in geometry.geometryObjects:
        link = model.frames[body.parentFrame].name
        carried, at = 0, body.parentJoint
        while at > 0:
            carried += model.names[at] in embodiment.arm_joints
            at = model.parents[at]
        depth[link] = carried
    links = list(depth)
    for i, first in enumerate(links):
        for second in links[i + 1 :]:
            if abs(depth[first] - depth[second]) <= NEIGHBOURS:
                ElementTree.SubElement(
                    root, 'disable_collisions', link1=first, link2=second, reason='Adjacent'
                )
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding='unicode')
