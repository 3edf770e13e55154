"""The arm as a MuJoCo model: the package's own URDF plus actuators and contact settings that hold things."""

from __future__ import annotations

import numpy as np

from ..errors import SetupError, suggest
from ..geometry import Array
from ..settings import Embodiment
from .gl import mujoco

GROUP_HIDDEN = 3
KP = np.array([4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0])
"""Stiffness of the joint servos [N m/rad]."""
KV = KP / 20.0
"""Damping of the joint servos [N m s/rad]; its lag is removed by the velocity of the target."""
FINGER_FRICTION = (1.2, 0.02, 0.001)
FINGER_SOLREF = (0.004, 1.0)


def set_vector(joint: mujoco.MjsJoint, name: str, value: float) -> None:
    """Damping and stiffness of an MjSpec joint are polynomials in recent MuJoCo and plain numbers in older ones."""
    current = np.asarray(getattr(joint, name))
    setattr(joint, name, value if current.ndim == 0 else [value] + [0.0] * (current.size - 1))


def build_arm(urdf: str, embodiment: Embodiment, timestep: float) -> mujoco.MjSpec:
    """MjSpec of the arm in the base frame with servos named like the arm joints and one called ``gripper``.

    Raises:
        SetupError: MuJoCo cannot read the URDF, or it lacks a joint or frame of the embodiment.
    """
    try:
        spec = mujoco.MjSpec.from_string(urdf)
    except ValueError as err:
        raise SetupError(f'MuJoCo cannot read the robot description: {err}') from err
    joints = {j.name for j in spec.joints}
    for name in (*embodiment.arm_joints, *embodiment.gripper.joints):
        if name not in joints:
            raise SetupError(f'the robot description has no joint {name!r}.{suggest(name, joints)}')
    if spec.body(embodiment.tcp_frame) is None:
        raise SetupError(
            f'the robot description has no frame {embodiment.tcp_frame!r}.'
            f'{suggest(embodiment.tcp_frame, [b.name for b in spec.bodies])}'
        )
    spec.modelname = embodiment.name
    spec.option.timestep = timestep
    # Held cylinders slip with implicitfast now and then; "discrete" (MuJoCo 4) holds them to 2 mm.
    integrators = mujoco.mjtIntegrator
    spec.option.integrator = getattr(integrators, 'mjINT_DISCRETE', integrators.mjINT_IMPLICITFAST)
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0
    # A diverged state must be seen and reported, not silently put back to the start.
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET

    for body in spec.bodies:
        body.gravcomp = 1.0
    fingers = {spec.joint(name).parent.name for name in embodiment.gripper.joints}
    for geom in spec.geoms:
        collides = geom.contype != 0
        if collides:
            geom.group = GROUP_HIDDEN
        if collides and geom.parent.name in fingers:
            geom.condim = 4
            geom.friction = FINGER_FRICTION
            geom.solref = FINGER_SOLREF
    _add_servos(spec, embodiment)
    _add_gripper(spec, embodiment)
    _exclude_neighbours(spec)
    return spec


def _add_servos(spec: mujoco.MjSpec, embodiment: Embodiment) -> None:
    n = len(embodiment.arm_joints)
    kp, kv = _gains(n)
    for k, name in enumerate(embodiment.arm_joints):
        joint = spec.joint(name)
        joint.armature = 0.1
        set_vector(joint, 'damping', 1.0)
        effort = float(joint.actfrcrange[1]) if joint.actfrcrange[1] > 0 else 87.0
        actuator = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        actuator.set_to_position(kp=float(kp[k]), kv=float(kv[k]))
        actuator.forcelimited = True
        actuator.forcerange = [-effort, effort]


def _gains(n: int) -> tuple[Array, Array]:
    kp = np.full(n, KP[-1])
    kp[: min(n, len(KP))] = KP[: min(n, len(KP))]
    return kp, kp / (KP[0] / KV[0])


def velocity_gain() -> float:
    """Seconds by which a servo lags behind a moving target when it is not told the target's velocity."""
    return float(KV[0] / KP[0])


def _add_gripper(spec: mujoco.MjSpec, embodiment: Embodiment) -> None:
    tendon = spec.add_tendon(name='gripper')
    for name in embodiment.gripper.joints:
        joint = spec.joint(name)
        joint.armature = 0.1
        set_vector(joint, 'damping', 10.0)
        tendon.wrap_joint(name, 1.0 / len(embodiment.gripper.joints))
    for equality in spec.equalities:
        # The default coupling of a URDF <mimic> is soft: the fingers would be millimetres apart under load.
        equality.solref = [0.005, 1.0]
    actuator = spec.add_actuator(name='gripper', target='gripper', trntype=mujoco.mjtTrn.mjTRN_TENDON)
    actuator.set_to_position(kp=3000.0, kv=120.0)
    force = embodiment.gripper.max_effort * len(embodiment.gripper.joints)
    actuator.forcelimited = True
    actuator.forcerange = [-force, force]


def _exclude_neighbours(spec: mujoco.MjSpec, distance: int = 3) -> None:
    """Links up to ``distance`` apart in the chain touch by construction: no contacts between them."""
    bodies = [b for b in spec.bodies if b.name and b.name != 'world']
    chains = {}
    for body in bodies:
        chain = [body.name]
        parent = body.parent
        while parent is not None and parent.name and parent.name != 'world':
            chain.append(parent.name)
            parent = parent.parent
        chains[body.name] = chain
    for name, chain in chains.items():
        for ancestor in chain[1 : distance + 1]:
            spec.add_exclude(bodyname1=name, bodyname2=ancestor)
