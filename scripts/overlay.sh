#!/bin/sh
# Makes a virtual environment that links to the packages of another one, except some.
# usage: overlay.sh BASE_PYTHON FOLDER PACKAGE...   (each PACKAGE is left out)
#
# A path file to the base is not enough: mujoco searches all of sys.path for its parts, and would mix
# two versions.
set -eu
base_python=$1 folder=$2
shift 2
"$base_python" -m venv "$folder"

site_packages='import sysconfig; print(sysconfig.get_path("purelib"))'
base=$("$base_python" -c "$site_packages")
own=$("$folder/bin/python" -c "$site_packages")
links=$(cd "$folder" && pwd)/base
rm -rf "$links"
mkdir "$links"
ln -s "$base"/* "$links"
for package in pip setuptools "$@"; do
  rm -f "$links/$package" "$links/$package"-*.dist-info
done
echo "$links" >"$own/base.pth"
