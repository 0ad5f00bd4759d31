#!/bin/sh
# Says in one line what the machine lacks and how to install it. $1: the Python to use.
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

missing=$("$python" - <<'PY'
import ctypes

libraries = {"libEGL.so.1": "libegl1", "libOpenGL.so.0": "libopengl0"}
missing = []
for library, package in libraries.items():
    try:
        ctypes.CDLL(library)
    except OSError:
        missing.append(package)
print(" ".join(missing))
PY
)
if [ -n "$missing" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && apt-get install -y -qq libegl1 libgl1-mesa-dri libopengl0 ||
      fail "Headless rendering needs: apt-get install libegl1 libgl1-mesa-dri libopengl0"
  else
    fail "Headless rendering needs: sudo apt-get install libegl1 libgl1-mesa-dri libopengl0"
  fi
fi
