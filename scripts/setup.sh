#!/usr/bin/env bash
# Make .venv with everything `make demo` and `make test` need. Safe to run again: it repairs what an interrupted run
# left behind and does nothing when all is in place.
#
#   ROS_DISTRO=kilted|jazzy   wheels to use when no ROS 2 is sourced (a sourced ROS 2 is used as it is)
#   TORCH=cpu|cuda|none       which PyTorch; the index it comes from is pip's own setting, see docs/INSTALL.md
#   PYTHON=python3.12         interpreter for the environment
#   VENV=.venv                where to put it
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
TORCH=${TORCH:-cpu}
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; else bold= plain=; fi
say() { echo "${bold}[setup]${plain} $*"; }
die() { echo "${bold}[setup] error:${plain} $*" >&2; exit 1; }

case $TORCH in cpu | cuda | none) ;; *) die "TORCH=$TORCH is not one of cpu, cuda, none" ;; esac

# An environment of ROS wheels that is active in this shell would lend its libraries to ours.
if [ -n "${_ROS_WHEELS_BOOTSTRAP_COMPLETE:-}" ]; then
  unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH
fi

# --- Which ROS 2 -----------------------------------------------------------------------------------------------------
sourced=
IFS=: read -ra prefixes <<<"${AMENT_PREFIX_PATH:-}"
for prefix in "${prefixes[@]}"; do
  if [ -d "$prefix/share/rclpy" ] && [ "$(readlink -f "$prefix")" != "$(readlink -f "$VENV")" ]; then
    sourced=$prefix
  fi
done
if [ -n "$sourced" ]; then
  ROS_DISTRO=${ROS_DISTRO:-unknown}
  say "ROS 2 $ROS_DISTRO is sourced ($sourced): building on top of it"
  found=
  for prefix in "${prefixes[@]}"; do
    if [ -d "$prefix/share/rosidl_default_generators" ]; then found=1; fi
  done
  [ -n "$found" ] || die "the sourced ROS 2 has no message generators. sudo apt-get install -y ros-$ROS_DISTRO-rosidl-default-generators"
else
  ROS_DISTRO=${ROS_DISTRO:-kilted}
  [ -f "requirements/ros-$ROS_DISTRO.txt" ] ||
    die "no wheels are known for ROS_DISTRO=$ROS_DISTRO. Allowed without a sourced ROS 2: $(cd requirements && ls ros-*.txt | sed 's/ros-//; s/\.txt//' | xargs)"
  for setup in /opt/ros/*/setup.bash; do
    if [ -f "$setup" ]; then say "note: $setup exists but is not sourced; using wheels. To use it: source it, then make setup"; fi
  done
  say "no ROS 2 is sourced: using the ROS 2 $ROS_DISTRO wheels"
fi

# --- Python ----------------------------------------------------------------------------------------------------------
usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }
if [ -n "$sourced" ]; then
  # The Python of the sourced ROS 2 is the only one that can import it.
  for candidate in ${PYTHON:-python3 /usr/bin/python3}; do
    if usable "$candidate" && "$candidate" -c 'import rclpy' 2>/dev/null; then python=$candidate; break; fi
  done
  [ -n "${python:-}" ] || die "none of '${PYTHON:-python3, /usr/bin/python3}' can import the rclpy of $sourced. Set PYTHON to the interpreter it was built for"
else
  for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.13 python3.10}; do
    if usable "$candidate"; then python=$candidate; break; fi
  done
  [ -n "${python:-}" ] || die "Python 3.10 to 3.14 is needed; '${PYTHON:-python3}' is $("${PYTHON:-python3}" --version 2>&1 || true). Install one or set PYTHON=/path/to/python3"
  "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 15))' ||
    die "there are no ROS 2 wheels for $("$python" --version). Use Python 3.10 to 3.14: PYTHON=python3.12 make setup"
fi

# A sourced workspace that has this package would be imported instead of this checkout.
other=$(cd / && "$python" -c 'import importlib.util as u; s = u.find_spec("instructvla_ros"); print(s.origin if s else "")' 2>/dev/null || true)
case $other in
  "" | "$(pwd -P)"/*) ;;
  *) die "another instructvla_ros ($other) is on PYTHONPATH. Use a shell in which its workspace is not sourced" ;;
esac

# --- System packages -------------------------------------------------------------------------------------------------
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
packages=()   # needed to build
graphics=()   # needed to render
command -v cmake >/dev/null || packages+=(cmake)
command -v c++ >/dev/null || command -v g++ >/dev/null || packages+=(g++)
command -v make >/dev/null || packages+=(make)
"$python" -c 'import ensurepip, venv' 2>/dev/null || packages+=("python$version-venv")
[ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || packages+=("python$version-dev")
library() { "$python" -c "import ctypes, sys; ctypes.CDLL(sys.argv[1])" "$1" 2>/dev/null; }
# PyOpenGL needs libGL or libOpenGL beside EGL; OSMesa needs nothing else.
if ! { library libEGL.so.1 && { library libGL.so.1 || library libOpenGL.so.0; }; } && ! library libOSMesa.so.8; then
  graphics=(libegl1 libgl1)
fi
all=("${packages[@]}" "${graphics[@]}")
if [ ${#all[@]} -gt 0 ]; then
  line="apt-get install -y --no-install-recommends ${all[*]}"
  root=
  if [ "$(id -u)" != 0 ]; then root="sudo -n"; fi
  if command -v apt-get >/dev/null && { [ -z "$root" ] || $root true 2>/dev/null; }; then
    say "installing ${all[*]}"
    $root apt-get update -q >/dev/null || say "apt-get update failed; trying with the lists there are"
    $root env DEBIAN_FRONTEND=noninteractive $line -q >/dev/null || die "failed: $line"
  elif [ ${#packages[@]} -gt 0 ]; then
    die "missing: ${all[*]}. On Debian or Ubuntu: sudo $line   (elsewhere: CMake, make, a C++17 compiler, the Python headers, EGL)"
  else
    say "warning: no OpenGL library, so the simulator cannot render. On Debian or Ubuntu: sudo $line"
  fi
fi

# --- Is all in place already? ----------------------------------------------------------------------------------------
fingerprint() {
  { echo "$VENV $TORCH $ROS_DISTRO $sourced $("$python" -c 'import sys; print(sys.version, sys.prefix)')"
    cat requirements/*.txt setup.py pyproject.toml CMakeLists.txt scripts/setup.sh resource/executable.in msg/*.msg srv/*.srv action/*.action
    ls config launch urdf instructvla_ros/nodes 2>/dev/null || true
    pwd
  } | sha256sum | cut -d' ' -f1
}
works() {
  local here
  here=$(pwd -P)
  (cd / && "$1/bin/python" -c '
import pathlib, sys
import rclpy, mujoco, pinocchio, scipy
import instructvla_ros.datatypes
place = pathlib.Path(instructvla_ros.datatypes.__file__).resolve().parents[1]
if place != pathlib.Path(sys.argv[1]):
    sys.exit(f"another instructvla_ros, in {place}, stands before this checkout. "
             "Use a shell in which its workspace is not sourced (PYTHONPATH, AMENT_PREFIX_PATH)")
from instructvla_ros.msg import ActionChunk
from instructvla_ros.action import ExecuteInstruction
from rclpy.type_support import check_for_type_support
check_for_type_support(ActionChunk)
check_for_type_support(ExecuteInstruction)' "$here")
}
mkdir -p "$(dirname "$VENV")"
target=$(cd "$(dirname "$VENV")" && pwd)/$(basename "$VENV")
stamp=$target/instructvla.stamp
print=$(fingerprint)
if [ "$(cat "$stamp" 2>/dev/null)" = "$print" ] && works "$target" 2>/dev/null; then
  say "all in place ($target)"
  exit 0
fi
rm -f "$stamp"

# --- Virtual environment ---------------------------------------------------------------------------------------------
system=()
if [ -n "$sourced" ]; then system=(--system-site-packages); fi
# The place too: scripts in bin/ name their interpreter, so an environment that was moved is a broken one.
kind="$version $ROS_DISTRO $sourced $target"
if [ -d "$target" ]; then
  if [ "$(cat "$target/instructvla.kind" 2>/dev/null)" != "$kind" ] || ! "$target/bin/python" -m pip --version >/dev/null 2>&1; then
    say "$target is unfinished, broken, or for another Python or ROS 2: making it anew"
    rm -rf "$target"
  fi
fi
earlier=
if [ -d "$target" ]; then
  earlier=1
else
  say "making $target with Python $version"
  "$python" -m venv "${system[@]}" "$target"
  echo "$kind" >"$target/instructvla.kind"
fi

install() {
  PIP_DISABLE_PIP_VERSION_CHECK=1 "$target/bin/python" -m pip install --quiet --no-input --constraint requirements/constraints.txt "$@"
}
fill() {
  say "installing Python packages (several minutes the first time)"
  install setuptools wheel
  if [ -z "$sourced" ]; then install numpy -r "requirements/ros-$ROS_DISTRO.txt"; fi
  if [ "$TORCH" != none ]; then
    pinned=$(sed -n 's/^torch==//p' requirements/constraints.txt)
    if [ "$TORCH" = cpu ] && [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then
      install "torch==$pinned+cpu" 2>/dev/null || {
        say "the configured package index has no CPU build of torch $pinned; taking its default build, which is several"
        say "times larger but works without a GPU (docs/INSTALL.md tells how to choose; TORCH=none leaves it out)"
        install "torch==$pinned"
      }
    else
      install "torch==$pinned"
    fi
  fi
  say "building the messages and installing this package"
  extras=dev
  if [ "$TORCH" != none ]; then extras=dev,model,language,lerobot; fi
  # setuptools warns at length that an editable install is editable.
  PYTHONWARNINGS=ignore INSTRUCTVLA_MESSAGES=require install --no-build-isolation -e ".[$extras]"
}
if ! { fill && works "$target"; }; then
  # Packages that an interrupted pip left in pieces are the reason that a second run can cure.
  [ -n "$earlier" ] || die "setup failed; the reason is above"
  say "that did not work; once more from an empty environment"
  rm -rf "$target" build/messages-*
  "$python" -m venv "${system[@]}" "$target"
  echo "$kind" >"$target/instructvla.kind"
  fill
  works "$target" || die "the packages are installed but do not import; see above"
fi
if [ "$TORCH" = cuda ] && ! "$target/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
  die "TORCH=cuda, but pip's index gave a CPU build of torch (docs/INSTALL.md tells how to choose)"
fi
echo "$print" >"$stamp"
say "done. Next: make demo"
