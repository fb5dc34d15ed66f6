#!/bin/sh
# Arctic Inference's suffix decoding cache, a peer in our benchmarks, in an environment of its own.
# Usage: install_arctic.sh VENV
#
# It comes as source, and its build asks for torch. Without vLLM only its suffix cache is built, from C++ that has nothing
# to do with torch: setup.py merely tells CMake where torch is. So a module of that name with no place in it stands in
# while it builds. A C++ compiler has to be there.
set -eu
venv=${1:?usage: install_arctic.sh VENV}
package=arctic-inference==0.3.0
stamp=$venv/.installed-$package
[ -e "$stamp" ] && exit 0

install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

echo "building $package in $venv (once; a minute)"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
install numpy setuptools wheel cmake ninja nanobind==2.9.2 grpcio-tools
stand_in=$(mktemp -d)
trap 'rm -r "$stand_in"' EXIT
echo 'class utils: cmake_prefix_path = ""' >"$stand_in/torch.py"
export PATH="$(cd "$venv" && pwd)/bin:$PATH" PYTHONPATH="$stand_in"
install --no-deps --no-build-isolation "$package"
touch "$stamp"
