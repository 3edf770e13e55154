"""What this machine has and what is missing, in plain words with the way out.

Nothing here imports ROS, MuJoCo or torch: what they can do is asked of child processes with a time limit, so that a
broken installation is a finding and not a crash.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from . import resources
from .errors import SetupError
from .evaluation.machine import usable_cores

OK, NOTE, MISSING = 'ok', 'note', 'missing'
IMAGE_BYTES = 640 * 480 * 3
NEEDED = ('numpy', 'scipy', 'mujoco', 'pin', 'pin-pink', 'daqp', 'ruckig', 'xacro', 'rosbags', 'imageio-ffmpeg')
DISTROS = ('kilted', 'jazzy', 'lyrical', 'rolling', 'humble')


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: what it is about. level: 'ok', 'note' (works, with a limit) or 'missing' (the demo needs it).
        text: what was found. remedy: what to do; '' when nothing has to be done.
    """

    topic: str
    level: str
    text: str
    remedy: str = ''


def report() -> list[Finding]:
    """Run every check, the slow ones at the same time; about five seconds. A check that fails is itself a finding."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        done = [pool.submit(_checked, check) for check in CHECKS]
        return [finding for future in done for finding in future.result()]


def render(findings: list[Finding]) -> str:
    """Findings as text: one line each, the way out below it, a summary at the end."""
    signs = {OK: 'ok  ', NOTE: 'note', MISSING: 'MISS'}
    width = max((len(f.topic) for f in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f'[{signs[finding.level]}] {finding.topic:<{width}}  {finding.text}')
        if finding.remedy:
            lines.append(f'{"":7}{"":{width}}  -> {finding.remedy}')
    count = sum(f.level == MISSING for f in findings)
    lines.append('')
    lines.append('Everything the demo needs is here.' if not count else f'{count} missing; start with the first one.')
    return '\n'.join(lines)


def run(as_json: bool = False) -> int:
    """Print the report; return 1 when something that the demo needs is missing."""
    findings = report()
    print(json.dumps([asdict(f) for f in findings], indent=2) if as_json else render(findings))
    return int(any(f.level == MISSING for f in findings))


def _checked(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except Exception as err:  # whatever is wrong with this machine, the rest of the report is still of use
        return [Finding(check.__name__, NOTE, f'could not be checked: {type(err).__name__}: {err}')]


def probe(code: str, timeout: float, **environment: str) -> tuple[dict[str, object], str]:
    """Run Python code in a child process. It prints JSON as its last line; return that, and why there is none.

    Args:
        code: program text. timeout: [s]. environment: variables to set for it.
    """
    # In another folder than the caller's: a source checkout there would shadow what is installed.
    try:
        done = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, timeout=timeout, cwd='/',
            env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {}, f'no answer within {timeout:.0f} s'
    lines = done.stdout.strip().splitlines()
    try:
        return dict(json.loads(lines[-1])), ''
    except (IndexError, ValueError):
        words = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return {}, words[-1] if words else f'exit code {done.returncode}'


def version(distribution: str) -> str:
    """Installed version of a Python distribution, '' when there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ''


def prefixes() -> list[Path]:
    """Prefixes in which ROS packages may be: what is sourced, and this environment."""
    paths = [Path(p) for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    return [*dict.fromkeys([*paths, Path(sys.prefix)])]


def has_ros_package(name: str) -> bool:
    """Whether some prefix has a ROS package."""
    return any((p / 'share' / name / 'package.xml').is_file() for p in prefixes())


def machine() -> Iterator[Finding]:
    """Cores, memory, disk, shared memory."""
    cores = usable_cores()
    memory = {}
    for line in _read('/proc/meminfo').splitlines():
        memory[line.split(':')[0]] = int(line.split()[1]) / 2**20
    free = shutil.disk_usage('.').free / 2**30
    text = f'{platform.platform(terse=True)}, {cores} cores, {memory.get("MemTotal", 0):.0f} GiB memory '
    text += f'({memory.get("MemAvailable", 0):.0f} free), {free:.0f} GiB disk free here'
    low = cores < 2 or memory.get('MemAvailable', 9) < 2 or free < 1
    way = 'the demo wants 2 cores, 2 GiB memory and 1 GiB disk' if low else ''
    yield Finding('machine', NOTE if low else OK, text, way)
    if os.path.isdir('/dev/shm'):
        usage = shutil.disk_usage('/dev/shm')
        text = f'/dev/shm has {usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB free'
        if usage.free < 64 * 2**20:
            way = 'images between nodes go through it. In a container: --shm-size=1g. Left over from killed nodes: '
            yield Finding('shared memory', NOTE, text, way + 'remove /dev/shm/fastdds_* while no node runs')
        else:
            yield Finding('shared memory', OK, text)


def python() -> Iterator[Finding]:
    """Interpreter and the versions this package is tested with."""
    kind = 'virtual environment' if sys.prefix != sys.base_prefix else 'system'
    ours = version('instructvla_ros') or 'from source'
    yield Finding('python', OK, f'{platform.python_version()} ({kind} {sys.prefix}), instructvla_ros {ours}')
    try:
        lines = (resources.share_directory() / 'requirements' / 'constraints.txt').read_text().splitlines()
    except (OSError, SetupError):
        return
    other, absent = [], []
    for line in lines:
        pin = re.match(r'([\w.-]+)==([\w.]+)(?:; python_version (>=|<) "3\.(\d+)")?$', line)
        if pin is None:
            continue
        if pin[3] and (sys.version_info[1] >= int(pin[4])) != (pin[3] == '>='):
            continue
        have = version(pin[1])
        if have and have.split('+')[0] != pin[2]:
            other.append(f'{pin[1]} {have} (tested: {pin[2]})')
        elif not have and pin[1].lower() in NEEDED:
            absent.append(pin[1])
    if absent:
        yield Finding('packages', MISSING, f'not installed: {", ".join(absent)}', 'make setup')
    if other:
        way = 'if something fails: pip install -c requirements/constraints.txt'
        yield Finding('versions', NOTE, '; '.join(other), way)
    elif not absent:
        yield Finding('versions', OK, 'those this package is tested with')


def ros() -> Iterator[Finding]:
    """ROS 2, its middleware, and our messages."""
    spec = importlib.util.find_spec('rclpy')
    if spec is None or spec.origin is None:
        way = 'make setup, or source /opt/ros/<distro>/setup.bash in this shell'
        yield Finding('ROS 2', MISSING, 'rclpy cannot be imported: nodes and the demo do not run', way)
        return
    distro = os.environ.get('ROS_DISTRO') or next((d for d in DISTROS if version(f'ros-{d}-rclpy')), 'unknown')
    place = Path(spec.origin).resolve()
    wheels = bool(version('ros-rclpy')) and Path(sys.prefix).resolve() in place.parents
    answer, why = probe(
        'import json, rclpy; rclpy.init(); from rclpy.utilities import get_rmw_implementation_identifier as rmw;'
        'node = rclpy.create_node("doctor"); node.destroy_node(); rclpy.shutdown(); print(json.dumps({"rmw": rmw()}))',
        30, ROS_DOMAIN_ID='101', ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST',
    )  # fmt: skip
    origin = f'wheels in {sys.prefix}' if wheels else f'sourced, {place.parents[4]}'
    if not answer:
        yield Finding('ROS 2', MISSING, f'{distro} ({origin}) does not start a node: {why}', 'make setup')
        return
    yield Finding('ROS 2', OK, f'{distro} ({origin})')
    yield from transport(str(answer['rmw']))
    answer, why = probe(
        'import json; from rclpy.type_support import check_for_type_support as check; import instructvla_ros.msg as m;'
        'from instructvla_ros.action import ExecuteInstruction as e; check(m.ActionChunk); check(e);'
        'print(json.dumps({"file": m.__file__}))',
        30,
    )  # fmt: skip
    if answer:
        yield Finding('messages', OK, f'built, in {Path(str(answer["file"])).parent.parent}')
    else:
        way = 'make setup, or `pip install -e .` with ROS 2 in this environment, or colcon build and source it'
        yield Finding('messages', MISSING, f'the messages of this package are not built for this Python: {why}', way)


def transport(rmw: str) -> Iterator[Finding]:
    """Middleware and whether camera images get through it.

    Args:
        rmw: identifier, for example rmw_fastrtps_cpp.
    """
    domain = os.environ.get('ROS_DOMAIN_ID', '0')
    reach = os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    yield Finding('middleware', OK, f'{rmw}, domain {domain}, discovery {reach}')
    if not rmw.startswith('rmw_fastrtps'):
        yield Finding('images', NOTE, f'the profile in config/ is for Fast DDS; images with {rmw} were not measured')
        return
    try:
        ours = resources.transport_profile()
    except SetupError as err:
        yield Finding('images', NOTE, str(err))
        return
    use = f'export FASTDDS_DEFAULT_PROFILES_FILE={ours} where images are published (`instructvla demo` does it itself)'
    if os.environ.get('FASTDDS_BUILTIN_TRANSPORTS', '').upper().startswith('LARGE_DATA'):
        text = 'FASTDDS_BUILTIN_TRANSPORTS=LARGE_DATA carries images, but nodes without it are not seen at all'
        yield Finding('images', NOTE, text, 'set it for every node, or unset it and ' + use)
        return
    name = next((n for n in ('FASTDDS', 'FASTRTPS') if os.environ.get(f'{n}_DEFAULT_PROFILES_FILE')), '')
    if not name:
        text = 'no transport profile is set: 640x480 images arrive late (13 ms), or never at a best effort subscriber'
        yield Finding('images', NOTE, text, use)
        return
    file = Path(os.environ[f'{name}_DEFAULT_PROFILES_FILE'])
    if not file.is_file():
        yield Finding('images', NOTE, f'{name}_DEFAULT_PROFILES_FILE={file} does not exist', use)
        return
    try:
        sizes = [int(e.text or 0) for e in ElementTree.parse(file).iter() if e.tag.rpartition('}')[2] == 'segment_size']
    except (ElementTree.ParseError, ValueError) as err:
        yield Finding('images', NOTE, f'{file} is not a valid profile: {err}', use)
        return
    if not sizes:
        text = f'{file} carries images by UDP alone: nothing is left of a killed node, but the processor has more to do'
        yield Finding('images', NOTE, text, use + ', unless nodes are killed')
    elif max(sizes) < 2 * IMAGE_BYTES:
        text = f'{file} has no shared memory segment with room for two 640x480 images ({2 * IMAGE_BYTES} bytes)'
        yield Finding('images', NOTE, text, use)
    else:
        old = ' (use the name FASTDDS_DEFAULT_PROFILES_FILE, the other is deprecated)' if name == 'FASTRTPS' else ''
        yield Finding('images', OK, f'profile {file}: 640x480 images in about 3 ms{old}')


def graphics() -> Iterator[Finding]:
    """Whether MuJoCo renders off-screen: one frame through the simulator's own choice of OpenGL."""
    if importlib.util.find_spec('mujoco') is None:
        yield Finding('rendering', MISSING, 'MuJoCo is not installed', 'make setup')
        return
    code = """
import json, time
from instructvla_ros.sim import gl
m = gl.mujoco.MjModel.from_xml_string('<mujoco><worldbody><light pos="0 0 2"/><geom size=".1"/></worldbody></mujoco>')
d = gl.mujoco.MjData(m); gl.mujoco.mj_forward(m, d); r = gl.mujoco.Renderer(m, 480, 640); r.update_scene(d); r.render()
times = []
for _ in range(3):
    start = time.perf_counter(); r.update_scene(d); image = r.render(); times.append(time.perf_counter() - start)
from OpenGL import GL
name = GL.glGetString(GL.GL_RENDERER).decode()
r.close()
print(json.dumps({'backend': gl.BACKEND, 'ms': 1e3 * min(times), 'seen': int(image.max()), 'name': name}), flush=True)
"""
    answer, why = probe(code, 60)
    if not answer:
        way = 'sudo apt-get install -y libegl1 libgl1 (or libosmesa6), and leave MUJOCO_GL unset'
        yield Finding('rendering', MISSING, f'MuJoCo cannot render a frame: {why}', way)
        return
    text = f'{answer["backend"]} ({answer["name"]}), a 640x480 frame in {float(str(answer["ms"])):.0f} ms'
    if not answer['seen']:
        yield Finding('rendering', MISSING, text + ', but it is black', 'try MUJOCO_GL=osmesa')
        return
    yield Finding('rendering', OK, text)


def gpu() -> Iterator[Finding]:
    """GPU and the PyTorch build."""
    cards = ''
    if shutil.which('nvidia-smi'):
        command = ['nvidia-smi', '--query-gpu=name,memory.total,driver_version', '--format=csv,noheader']
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
        cards = '; '.join(done.stdout.strip().splitlines()) if done.returncode == 0 else ''
    yield Finding('GPU', OK if cards else NOTE, cards or 'no NVIDIA GPU: the demo needs none, the 2B model does')
    if importlib.util.find_spec('torch') is None:
        way = 'make setup TORCH=cpu (or cuda)'
        yield Finding('torch', NOTE, 'not installed: learned policies do not run', way)
        return
    code = 'import json, torch; print(json.dumps({"cuda": torch.version.cuda, "works": torch.cuda.is_available()}))'
    answer, why = probe(code, 90)
    have = version('torch')
    if not answer:
        yield Finding('torch', NOTE, f'{have} cannot be imported: {why}', 'make setup')
    elif cards and not answer['works']:
        way = 'make setup TORCH=cuda' if not answer['cuda'] else 'update the NVIDIA driver'
        yield Finding('torch', NOTE, f'{have} does not use the GPU that is here', way)
    else:
        yield Finding('torch', OK, f'{have}, {"CUDA " + str(answer["cuda"]) if answer["works"] else "on the CPU"}')


def cameras() -> Iterator[Finding]:
    """Video devices."""
    found, closed = [], []
    for device in sorted(Path('/dev').glob('video*')):
        label = _read(f'/sys/class/video4linux/{device.name}/name').strip()
        found.append(f'{device} ({label})' if label else str(device))
        if not os.access(device, os.R_OK | os.W_OK):
            closed.append(str(device))
    if closed:
        way = 'sudo usermod -aG video $USER, then log in again'
        yield Finding('cameras', NOTE, f'no permission for {", ".join(closed)}', way)
    yield Finding('cameras', OK, ', '.join(found) or 'none under /dev/video* (the simulator has its own)')


def extras() -> Iterator[Finding]:
    """Parts of a full ROS 2 installation that are used when they are there."""
    wanted = {
        'MoveIt': (has_ros_package('moveit_ros_move_group'), 'backend moveit; the direct backend needs none'),
        'launch': (importlib.util.find_spec('launch_ros') is not None, 'ros2 launch; `instructvla demo` needs none'),
        'cv_bridge': (importlib.util.find_spec('cv_bridge') is not None, 'image conversion; our own is used instead'),
        'ros2 command': (shutil.which('ros2') is not None, 'looking into the graph by hand'),
        'RViz': (shutil.which('rviz2') is not None, 'three-dimensional view'),
        'Franka driver': (has_ros_package('franka_bringup'), 'a real arm'),
        'franka_description': (has_ros_package('franka_description'), "the vendor's URDF; ours is used instead"),
    }
    there = [name for name, (found, _) in wanted.items() if found]
    absent = [f'{name} (for {use})' for name, (found, use) in wanted.items() if not found]
    yield Finding('optional', OK, f'found: {", ".join(there) or "none"}')
    if absent:
        yield Finding('optional', NOTE, f'not found: {", ".join(absent)}')
    if has_ros_package('franka_bringup') and _read('/sys/kernel/realtime').strip() != '1':
        yield Finding('real time', NOTE, 'the kernel has no PREEMPT_RT, which the Franka driver wants at 1 kHz')


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding='utf-8', errors='replace')
    except OSError:
        return ''


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (machine, python, ros, graphics, gpu, cameras, extras)
