"""The configuration of the package: embodiment, safety, control, policy node, simulator.

Each class is one YAML file or one group of it in ``config/``. Names of joints and frames, limits and topics of a
robot live in :class:`Embodiment`; nothing else in the package knows them.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import option
from .errors import ConfigError

Vec3 = tuple[float, float, float]


@dataclass(frozen=True)
class JointLimits:
    """Limits per arm joint, in the order of ``Embodiment.arm_joints``."""

    lower: tuple[float, ...] = option((), 'smallest position', unit='rad')
    upper: tuple[float, ...] = option((), 'largest position', unit='rad')
    velocity: tuple[float, ...] = option((), 'largest speed', unit='rad/s', ge=0.0)
    acceleration: tuple[float, ...] = option((), 'largest acceleration', unit='rad/s^2', ge=0.0)
    jerk: tuple[float, ...] = option((), 'largest jerk', unit='rad/s^3', ge=0.0)

    def __post_init__(self) -> None:
        n = len(self.lower)
        for name in ('upper', 'velocity', 'acceleration', 'jerk'):
            if len(getattr(self, name)) != n:
                raise ConfigError(f'limits.{name} has {len(getattr(self, name))} values, limits.lower has {n}')
        for k, (lo, hi) in enumerate(zip(self.lower, self.upper, strict=True)):
            if not lo < hi:
                raise ConfigError(f'limits: joint {k + 1} has lower {lo} >= upper {hi}')


@dataclass(frozen=True)
class Gripper:
    """Parallel gripper."""

    joints: tuple[str, ...] = option((), 'finger joints in /joint_states; openness is their mean over half the width')
    max_width: float = option(0.08, 'distance between the fingers when open', unit='m', ge=0.001, le=0.5)
    max_effort: float = option(30.0, 'grasp force', unit='N', ge=0.0, le=140.0)
    speed: float = option(0.1, 'finger speed', unit='m/s', ge=0.001, le=1.0)
    close_below: float = option(0.4, 'openness below which an open gripper is told to close', ge=0.0, le=1.0)
    open_above: float = option(0.6, 'openness above which a closed gripper is told to open', ge=0.0, le=1.0)
    driver: str = option(
        'auto',
        'who moves the fingers: topic (the simulator), franka (franka_msgs Move and Grasp), gripper_command or '
        'parallel_gripper_command (control_msgs actions); auto: topic, unless the launch file knows better',
        choices=('auto', 'topic', 'franka', 'gripper_command', 'parallel_gripper_command'),
    )
    action: str = option('auto', 'name of the driver, for franka without /move and /grasp; auto: the usual one')
    command: str = option(
        'half', "position in a GripperCommand: half the width (one finger's joint) or the full width",
        choices=('half', 'full'),
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.close_below > self.open_above:
            raise ConfigError(f'gripper: close_below {self.close_below} is above open_above {self.open_above}')


@dataclass(frozen=True)
class Topics:
    """ROS names of the robot side; relative names go under the node's namespace."""

    joint_states: str = option('/joint_states', 'sensor_msgs/JointState')
    joint_trajectory: str = option('/fr3_arm_controller/joint_trajectory', 'trajectory_msgs/JointTrajectory')
    gripper_command: str = option('/gripper/command', 'instructvla_ros/GripperCommand')
    robot_description: str = option('/robot_description', 'std_msgs/String, transient local')


@dataclass(frozen=True)
class Mount:
    """Extrinsic calibration: where the optical frame of a camera is (REP 103: x right, y down, z forward)."""

    link: str = option('', 'link the camera is fixed to; empty: the robot description has its optical frame')
    xyz: Vec3 = option((0.0, 0.0, 0.0), 'optical frame on that link', unit='m', ge=-10.0, le=10.0)
    rpy: Vec3 = option((0.0, 0.0, 0.0), 'the same, fixed-axis roll pitch yaw', unit='rad', ge=-6.3, le=6.3)


@dataclass(frozen=True)
class View:
    """One camera, and what the policy sees of its picture: crop, then flip, then turn (camera_view.py)."""

    topic: str = option('', 'sensor_msgs/Image topic, or .../compressed for sensor_msgs/CompressedImage')
    info_topic: str = option('', 'sensor_msgs/CameraInfo topic')
    frame_id: str = option('', 'optical frame')
    crop: tuple[int, ...] = option(
        (), "x, y, width, height of the part that is seen, in the camera's picture; empty: all of it", unit='px', ge=0
    )
    flip: str = option('none', 'mirror after the crop', choices=('none', 'horizontal', 'vertical', 'both'))
    rotate: int = option(0, 'turn clockwise after the flip: 0, 90, 180 or 270', unit='deg', ge=0, le=270)
    mount: Mount = option(Mount, 'where the camera is')

    def __post_init__(self) -> None:
        if self.crop and (len(self.crop) != 4 or min(self.crop[2:]) < 1):
            raise ConfigError(
                f'crop has to be empty or [x, y, width, height] with at least one pixel, got {list(self.crop)}'
            )
        if self.rotate % 90:
            raise ConfigError(f'rotate: {self.rotate} is not allowed; allowed are 0, 90, 180, 270')


@dataclass(frozen=True)
class Embodiment:
    """One robot: names, limits, home, tool, cameras, conventions (config/franka.yaml)."""

    name: str = option('fr3', 'robot model; the descriptions builtin and franka_description know fr3 and panda')
    description: str = option('builtin', "'builtin', 'franka_description', or a URDF/xacro file")
    base_frame: str = option('fr3_link0', 'frame of poses and deltas')
    tcp_frame: str = option('fr3_hand_tcp', 'tool centre point')
    arm_joints: tuple[str, ...] = option((), 'in kinematic order')
    home: tuple[float, ...] = option((), 'start pose', unit='rad')
    limits: JointLimits = option(JointLimits, 'joint limits')
    gripper: Gripper = option(Gripper, 'gripper')
    topics: Topics = option(Topics, 'robot topics')
    views: dict[str, View] = option({}, 'cameras by view name, in the order the model expects')
    delta_frame: str = option('base', 'frame of the action deltas', choices=('base', 'tool'))
    rotation: str = option('rpy', 'rotation part of the action deltas', choices=('rpy', 'rotvec'))

    def __post_init__(self) -> None:
        n = len(self.arm_joints)
        if len(self.home) != n or len(self.limits.lower) != n:
            raise ConfigError(
                f'embodiment {self.name}: {n} arm_joints, {len(self.home)} home values, {len(self.limits.lower)} limits'
            )
        for name, q, lo, hi in zip(
            self.arm_joints, self.home, self.limits.lower, self.limits.upper, strict=True
        ):
            if not lo <= q <= hi:
                raise ConfigError(f'embodiment {self.name}: home of {name} is {q} rad, allowed {lo} .. {hi} rad')


@dataclass(frozen=True)
class Safety:
    """Bounds of the safety ladder; every rung reports by name (DESIGN: safety ladder)."""

    max_chunk_age: float = option(0.6, 'oldest creation stamp of a chunk that may start', unit='s', ge=0.0, le=30.0)
    max_observation_age: float = option(1.0, 'oldest observation a chunk may rest on', unit='s', ge=0.0, le=60.0)
    max_future: float = option(0.05, 'how far a stamp may lie in the future', unit='s', ge=0.0, le=5.0)
    max_step_translation: float = option(0.08, 'translation of one step', unit='m', ge=0.0, le=1.0)
    max_step_rotation: float = option(0.5, 'rotation of one step', unit='rad', ge=0.0, le=3.14)
    workspace_lower: Vec3 = option((0.15, -0.6, 0.0), 'corner of the tcp box in the base frame', unit='m')
    workspace_upper: Vec3 = option((0.8, 0.6, 0.9), 'corner of the tcp box in the base frame', unit='m')
    table_height: float = option(0.0, 'z of the table plane in the base frame', unit='m', ge=-2.0, le=2.0)
    table_clearance: float = option(0.005, 'smallest height of the tcp over the table', unit='m', ge=0.0, le=0.5)
    max_cartesian_speed: float = option(0.5, 'tcp speed', unit='m/s', ge=0.0, le=3.0)
    max_rotation_speed: float = option(1.5, 'tcp rotation speed', unit='rad/s', ge=0.0, le=3.14)
    position_margin: float = option(0.02, 'kept from each joint position limit', unit='rad', ge=0.0, le=0.5)
    velocity_scale: float = option(0.6, 'share of the joint velocity limits', ge=0.01, le=1.0)
    acceleration_scale: float = option(0.6, 'share of the joint acceleration limits', ge=0.01, le=1.0)
    jerk_scale: float = option(0.6, 'share of the joint jerk limits', ge=0.01, le=1.0)
    max_joint_jump: float = option(
        0.15, 'joint change of one IK solution from one period to the next', unit='rad', ge=0.0, le=3.14
    )
    max_tracking_error: float = option(
        0.25, 'commanded against measured joint before holding', unit='rad', ge=0.0, le=3.14
    )
    max_state_age: float = option(0.2, 'oldest joint state the controller acts on', unit='s', ge=0.0, le=5.0)
    stop_time: float = option(
        0.3, 'longest time to come to rest; joint speeds are capped so that it holds', unit='s', ge=0.05, le=5.0
    )

    def __post_init__(self) -> None:
        for axis, lo, hi in zip('xyz', self.workspace_lower, self.workspace_upper, strict=True):
            if not lo < hi:
                raise ConfigError(f'safety: workspace {axis} is {lo} .. {hi} m, it must grow')


@dataclass(frozen=True)
class Obstacle:
    """A box in the planning scene."""

    name: str = option('', 'in the planning scene')
    size: Vec3 = option((0.1, 0.1, 0.1), 'along its own axes', unit='m', ge=0.001, le=10.0)
    position: Vec3 = option((0.0, 0.0, 0.0), 'of its centre in the base frame', unit='m')
    rpy: Vec3 = option((0.0, 0.0, 0.0), 'roll, pitch, yaw in the base frame', unit='rad')
    touch_links: tuple[str, ...] = option((), 'links that may touch it')

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError('obstacle: a box in the planning scene needs a name')


@dataclass(frozen=True)
class Servo:
    """Output servo: poses to a servo_node (docs/moveit.md)."""

    node: str = option('/servo_node', 'full name of the servo_node')
    rate: float = option(50.0, 'poses per second at most', unit='Hz', ge=10.0, le=1000.0)
    tip: str = option('', 'link whose pose Servo follows: tip of its planning group; empty: tcp_frame')


@dataclass(frozen=True)
class MoveIt:
    """Backend moveit: which move_group is asked, what it is told, and for how long it may think (docs/moveit.md)."""

    namespace: str = option('', 'namespace of move_group, empty for none')
    group: str = option('auto', "planning group of the arm; auto: the embodiment's name + _arm")
    tip: str = option('', 'link whose path is sent with check: cartesian; empty: tcp_frame of the embodiment')
    check: str = option(
        'states',
        'states: validity of each joint state on the way (our kinematics); cartesian: one Cartesian path (its own)',
        choices=('states', 'cartesian'),
    )
    spacing: float = option(0.1, 'time between two states of a chunk that are checked', unit='s', ge=0.01, le=1.0)
    resolution: float = option(
        0.05, 'check: states: largest change of a joint between two checked states; 0: each one', unit='rad', ge=0.0,
        le=0.5,
    )  # fmt: skip
    timeout: float = option(0.15, 'longest wait for the verdict on a chunk', unit='s', ge=0.01, le=2.0)
    startup_wait: float = option(20.0, 'longest wait for move_group at start', unit='s', ge=0.0, le=600.0)
    elbow: float = option(
        0.3, 'check: cartesian: largest difference of a joint to our path', unit='rad', ge=0.0, le=3.14
    )
    pipeline: str = option(
        'ompl', 'backend moveit_py: planner of large motions', choices=('ompl', 'pilz_industrial_motion_planner')
    )
    config_package: str = option(
        '', 'backend moveit_py: MoveIt configuration package, such as moveit_resources_panda_moveit_config; empty: '
        'our own, made of the embodiment'
    )  # fmt: skip
    planning_time: float = option(5.0, 'time to plan a large motion (home)', unit='s', ge=0.1, le=60.0)
    scene: bool = option(True, 'put table and obstacles into the planning scene at start')
    table_size: Vec3 = option((1.6, 1.6, 0.05), 'of the table; its top is at safety.table_height', unit='m', ge=0.001)
    table_center: tuple[float, float] = option((0.4, 0.0), 'x, y of the table in the base frame', unit='m')
    table_touch_links: tuple[str, ...] = option(
        ('link0', 'link1', 'hand', 'hand_tcp', 'leftfinger', 'rightfinger'),
        "links, without the embodiment's prefix, that may touch it: it carries the base, the hand reaches down to it",
    )
    obstacles: tuple[Obstacle, ...] = option((), 'boxes in the planning scene')
    servo: Servo = option(Servo, 'output servo')

    def __post_init__(self) -> None:
        names = [o.name for o in self.obstacles] + ['table']
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f'moveit.obstacles: the name {name!r} is used twice (the table is called table)')


@dataclass(frozen=True)
class Control:
    """Controller node (config/controller.yaml)."""

    rate: float = option(100.0, 'controller periods per second', unit='Hz', ge=10.0, le=1000.0)
    backend: str = option(
        'direct',
        'direct: our own kinematics and self-collision check; moveit: every chunk is also checked by move_group; '
        'moveit_py: by moveit_py in a process of its own',
        choices=('direct', 'moveit', 'moveit_py'),
    )
    backend_fallback: bool = option(False, 'start with direct when the backend is not available')
    output: str = option(
        'trajectory',
        'where commands go: a joint trajectory to topics.joint_trajectory, or poses to MoveIt Servo',
        choices=('trajectory', 'servo'),
    )
    strategy: str = option(
        'replace', 'what a new chunk does to the old one', choices=('replace', 'ensemble', 'blend')
    )
    ensemble_size: int = option(4, 'chunks the adaptive ensemble keeps', ge=1, le=32)
    ensemble_alpha: float = option(0.1, 'weight of the cosine similarity in the adaptive ensemble', ge=0.0, le=10.0)
    blend_time: float = option(0.2, 'time over which the new chunk takes over', unit='s', ge=0.0, le=5.0)
    rebase_distance: float = option(
        0.06, 'commanded against measured tcp beyond which deltas start at the measured pose', unit='m', ge=0.0, le=1.0
    )
    rebase_angle: float = option(0.35, 'the same for the orientation', unit='rad', ge=0.0, le=3.14)
    hold_after: float = option(
        0.0, 'how long the last pose of a chunk is kept before it counts as expired', unit='s', ge=0.0, le=60.0
    )
    play_time: float = option(
        0.0, 'longest time a chunk plays after it was admitted; 0: to its end', unit='s', ge=0.0, le=60.0
    )
    tracking_lag: float = option(
        0.05, 'time by which the arm follows its command; the gripper waits for it', unit='s', ge=0.0, le=0.5
    )
    ramp_time: float = option(
        1.0, 'time over which the first commands after enable grow to full speed', unit='s', ge=0.0, le=30.0
    )
    state_rate: float = option(50.0, 'ControllerState messages per second', unit='Hz', ge=1.0, le=1000.0)
    chunk_lease: float = option(
        0.18, 'silence of the process behind a chunk after which the arm brakes; 0: off', unit='s', ge=0.0, le=60.0
    )
    start_enabled: bool = option(False, 'enable at start-up; only for simulation')
    dry_run: bool = option(False, 'publish everything, move nothing')
    home_speed: float = option(0.2, 'share of the joint speeds on the way home', ge=0.01, le=1.0)
    moveit: MoveIt = option(MoveIt, 'backends moveit and moveit_py')
    safety: Safety = option(Safety, 'safety ladder')


@dataclass(frozen=True)
class PolicySettings:
    """Policy and reasoning nodes (config/policy.yaml)."""

    policy: str = option('hold', 'which policy', choices=('hold', 'expert', 'instructvla'))
    checkpoint: str = option('', 'run directory or hub id; empty for policies without weights')
    revision: str = option('', 'revision of the checkpoint; empty: newest')
    device: str = option('auto', "'auto', 'cpu', 'cuda', 'cuda:1', ...")
    dtype: str = option('auto', 'number format', choices=('auto', 'float32', 'bfloat16'))
    capture: str = option(
        'auto',
        "'auto' records CUDA graphs on a GPU; 'off' never does; 'on' takes their fixed shapes without a GPU as well",
        choices=('auto', 'on', 'off'),
    )
    compile: bool = option(False, 'pass the model through torch.compile: minutes at the start, needs a C++ compiler')
    chunk_rate: float = option(5.0, 'chunks per second at most', unit='Hz', ge=0.1, le=100.0)
    step_period: float = option(0.1, 'time between two steps of a chunk', unit='s', ge=0.01, le=2.0)
    horizon: int = option(8, 'steps of a chunk', ge=1, le=128)
    reasoning_period: float = option(2.0, 'shortest time between two sentences', unit='s', ge=0.0, le=60.0)
    latent_period: int = option(1, 'expert calls per latent', ge=1, le=100)
    euler_steps: int = option(0, 'integration steps of the flow; 0: as many as the checkpoint says', ge=0, le=100)
    resize: str = option(
        'quick',
        "filter that brings pictures to the model's sizes: torch's, at most 2 grey levels of 255 beside Pillow's, or "
        "Pillow's itself, as the reference",
        choices=('quick', 'exact'),
    )
    sync_slop: float = option(0.05, 'largest spread of the stamps of one observation', unit='s', ge=0.0, le=1.0)
    max_view_age: float = option(0.3, 'age at which a view counts as silent', unit='s', ge=0.01, le=10.0)
    max_state_age: float = option(0.2, 'age at which the joint states count as silent', unit='s', ge=0.01, le=10.0)
    default_duration: float = option(60.0, 'time limit of a goal that names none', unit='s', ge=1.0, le=3600.0)
    input_timeout: float = option(
        3.0, 'silence of an input after which a goal ends with STALE_INPUT', unit='s', ge=0.1, le=600.0
    )
    max_instruction_length: int = option(1000, 'longest instruction in characters', ge=1, le=100000)
    reasoning: str = option(
        'shared',
        'who says the sentences: this process, a reasoning_node of its own, or nobody',
        choices=('shared', 'separate', 'off'),
    )
    reasoning_wait: float = option(
        5.0, 'how long the first chunk of an instruction waits for its sentence', unit='s', ge=0.0, le=60.0
    )
    done_chunks: int = option(3, 'consecutive chunks that must say done before a goal has succeeded', ge=1, le=100)
    max_refusals: int = option(
        5, 'consecutive chunks the controller may refuse before a goal ends with UNSAFE', ge=1, le=1_000_000
    )
    dataset: str = option('', 'dataset whose statistics scale the actions; empty: the only one of the checkpoint')
    mask: str = option(
        '', "attention mask of the action expert; empty: the checkpoint's", choices=('', 'bias', 'block')
    )
    noise: float = option(
        1.0, 'scale of the noise the actions start from: 1 as in training, 0: none', ge=0.0, le=1.0
    )
    seed: int = option(0, 'of the noise the actions start from', ge=0)
    realtime: str = option(
        'off',
        'how a chunk of the learned policy continues the one being executed: not, mixed with it, or sampled towards it',
        choices=('off', 'blend', 'guided'),
    )
    realtime_beta: float = option(
        10.0, 'bound of the guidance weight; never more than there are Euler steps', ge=0.0, le=100.0
    )
    realtime_latency: float = option(
        0.0, 'camera to model plus model to arm, beyond the measured time of the model', unit='s', ge=0.0, le=5.0
    )
    realtime_measured: bool = option(True, 'add the measured time of the model; off where time is simulated')
    sim_speed: float = option(
        1.0, 'simulated seconds per second, as the simulator has it; other than 1 needs use_sim_time', ge=0.01, le=100.0
    )


@dataclass(frozen=True)
class SimCamera:
    """A camera of the simulator."""

    view: str = option('', 'view name')
    parent: str = option('world', "body it is fixed to: 'world' or a link of the arm")
    position: Vec3 = option((0.0, 0.0, 0.0), 'in the parent frame', unit='m')
    target: Vec3 = option((0.0, 0.0, 0.0), 'point it looks at, in the parent frame', unit='m')
    up: Vec3 = option((0.0, 0.0, 1.0), 'upward direction in the parent frame')
    fovy: float = option(45.0, 'vertical field of view', unit='deg', ge=5.0, le=150.0)
    width: int = option(640, 'image width', unit='px', ge=16, le=4096)
    height: int = option(480, 'image height', unit='px', ge=16, le=4096)
    rate: float = option(15.0, 'frames per second', unit='Hz', ge=0.1, le=120.0)


@dataclass(frozen=True)
class Randomization:
    """Strength of domain randomisation by seed; 0 switches a part off."""

    light: float = option(0.3, 'spread of light position and brightness', ge=0.0, le=1.0)
    color: float = option(0.06, 'spread of object colours', ge=0.0, le=1.0)
    table: float = option(0.3, 'spread of table colour and texture', ge=0.0, le=1.0)
    camera: float = option(0.0, 'largest shift of the fixed camera', unit='m', ge=0.0, le=0.3)
    distractors: int = option(2, 'objects that no instruction names', ge=0, le=8)
    alike: float = option(0.0, 'share of them, bowls and plates aside, in the colour of the target', ge=0.0, le=0.9)


@dataclass(frozen=True)
class Sim:
    """Simulator (config/sim.yaml)."""

    cameras: tuple[SimCamera, ...] = option((), 'cameras')
    timestep: float = option(0.002, 'physics step', unit='s', ge=0.0005, le=0.01)
    joint_state_rate: float = option(100.0, 'joint states per second', unit='Hz', ge=1.0, le=1000.0)
    clock_rate: float = option(100.0, '/clock messages per second', unit='Hz', ge=1.0, le=1000.0)
    state_rate: float = option(20.0, 'ground-truth messages per second', unit='Hz', ge=0.1, le=1000.0)
    speed: float = option(
        1.0, 'simulated seconds per second; other than 1 needs use_sim_time everywhere', ge=0.01, le=100.0
    )
    jpeg_quality: int = option(0, 'quality of CompressedImage; 0: do not publish it', ge=0, le=100)
    shadows: bool = option(False, 'render shadows (four times slower in software)')
    task: str = option('pick', 'task at start')
    seed: int = option(0, 'seed at start', ge=0)
    randomization: Randomization = option(Randomization, 'domain randomisation')


@dataclass(frozen=True)
class Visual:
    """What viz_node shows in RViz."""

    rate: float = option(10.0, 'marker messages per second while somebody looks', unit='Hz', ge=0.5, le=60.0)
    fade_time: float = option(3.0, 'time in which a replaced chunk fades', unit='s', ge=0.1, le=60.0)
    verdict_time: float = option(6.0, 'time in which a safety verdict fades', unit='s', ge=0.1, le=600.0)
    executed_time: float = option(30.0, 'how much of the executed path is kept', unit='s', ge=0.1, le=3600.0)
    thoughts: int = option(6, 'earlier sentences beside the workspace', ge=0, le=20)
    view: str = option('third_person', 'view that annotated_image is made from')
    image_rate: float = option(5.0, 'annotated images per second at most', unit='Hz', ge=0.1, le=30.0)
    overlay: bool = option(True, 'text over the picture of RViz, where rviz_2d_overlay_msgs is installed')
    overlay_size: float = option(14.0, 'height of its letters', unit='px', ge=6.0, le=72.0)
    publish_tf: bool = option(
        False, 'publish the links of the robot on /tf; only where no robot_state_publisher runs'
    )


@dataclass(frozen=True)
class Web:
    """The operator's page (web_node)."""

    host: str = option('127.0.0.1', 'address to listen on; other than loopback needs a token')
    port: int = option(8765, 'TCP port; 0: any free one', ge=0, le=65535)
    token_file: str = option('', 'file whose first line is the token; empty: a new token, none on loopback')
    rate: float = option(15.0, 'states per second while somebody looks', unit='Hz', ge=1.0, le=60.0)
    image_rate: float = option(8.0, 'pictures per second and camera at most', unit='Hz', ge=0.1, le=30.0)
    image_width: int = option(640, 'width above which pictures are made smaller', unit='px', ge=64, le=4096)
    image_quality: int = option(75, 'JPEG quality', ge=1, le=95)
    viewers: int = option(8, 'browsers at the same time', ge=1, le=100)
    stale_after: float = option(1.0, 'age from which what is shown is greyed', unit='s', ge=0.1, le=60.0)
