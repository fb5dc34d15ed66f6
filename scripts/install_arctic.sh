#!/bin/sh
# Arctic Inference's suffix decoding cache, a peer in our benchmarks, in an environment of its own.
# Usage: install_arctic.sh VENV [VLLM_VENV]
#
# Where there is an environment of vLLM's, the built package is put there too: vLLM's method "suffix" drafts with it.
#
# It comes as source, and its build asks for torch. Without vLLM only its suffix cache is built, from C++ that has nothing
# to do with torch: setup.py merely tells CMake where torch is. So a module of that name with no place in it stands in
# while it builds. A C++ compiler has to be there.
set -eu
venv=${1:?usage: install_arctic.sh VENV}
package=arctic-inference==0.3.0
stamp=$venv/.installed-$package-as-wheel
vllm=${2:-}

install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
into_vllm() {
    [ ! -x "$vllm/bin/python" ] && return
    [ -e "$vllm/.installed-$package" ] && return
    "$vllm/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$venv"/wheels/*.whl
    touch "$vllm/.installed-$package"
}

if [ -e "$stamp" ]; then
    into_vllm
    exit 0
fi
echo "building $package in $venv (once; a minute)"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
install numpy setuptools wheel cmake ninja nanobind==2.9.2 grpcio-tools
stand_in=$(mktemp -d)
trap 'rm -r "$stand_in"' EXIT
echo 'class utils: cmake_prefix_path = ""' >"$stand_in/torch.py"
export PATH="$(cd "$venv" && pwd)/bin:$PATH" PYTHONPATH="$stand_in"
"$venv/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --wheel-dir "$venv/wheels" "$package"
install --no-deps "$venv"/wheels/*.whl
touch "$stamp"
into_vllm
