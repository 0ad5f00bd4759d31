#!/bin/sh
# Checks system packages; prints in one line what is missing and how to install it.
# usage: check_system.sh [PYTHON]
set -u
python=${1:-python3}

fail() {
  echo "$1" >&2
  exit 1
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  fail "Python 3.11 or newer is needed as '$python': apt-get install python3 python3-venv, or make PYTHON=python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "Python's venv module is missing: apt-get install python3-venv"

# EGL and OpenGL render without a display. torch.compile on a CPU needs a compiler and Python's headers.
packages="libegl1 libgl1-mesa-dri libopengl0 g++ python3-dev"
missing=$("$python" - <<'PY'
import ctypes
import os
import shutil
import sysconfig

missing = []
for library, package in {"libEGL.so.1": "libegl1", "libOpenGL.so.0": "libopengl0"}.items():
    try:
        ctypes.CDLL(library)
    except OSError:
        missing.append(package)
if shutil.which(os.environ.get("CXX", "g++")) is None:
    missing.append("g++")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    missing.append("python3-dev")
print(" ".join(missing))
PY
)
if [ -n "$missing" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && apt-get install -y -qq $packages ||
      fail "Missing: $missing. apt-get install $packages"
  else
    fail "Missing: $missing. sudo apt-get install $packages"
  fi
fi
