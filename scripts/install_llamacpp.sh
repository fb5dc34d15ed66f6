#!/bin/sh
# llama.cpp, a peer in our benchmarks, built for this processor from the source package of llama-cpp-python.
# Usage: install_llamacpp.sh VENV
#
# Its own server takes token ids and batches continuously, so that it writes the very prompts that we write; its
# quantize makes the precisions from the model's GGUF file. A C++ compiler has to be there. An interrupted build goes on
# where it was. BUILD_JOBS: compilers at once (default: a core each).
set -eu
venv=${1:?usage: install_llamacpp.sh VENV}
package=llama-cpp-python==0.3.36
stamp=$venv/.installed-$package
[ -e "$stamp" ] && exit 0

echo "building llama.cpp of $package in $venv (once; a quarter of an hour)"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
pip() { "$venv/bin/python" -m pip "$@" --quiet --disable-pip-version-check; }
pip install cmake ninja scikit-build-core
export PATH="$(cd "$venv" && pwd)/bin:$PATH"

source=$venv/src/llama-cpp-python
if [ ! -d "$source" ]; then
    pip download --no-deps --no-build-isolation --no-binary llama-cpp-python --dest "$venv/src" "$package"
    mkdir "$source.part"
    tar -xzf "$venv"/src/*.tar.gz -C "$source.part" --strip-components 1
    mv "$source.part" "$source"
fi
# Everything else as its makers set it: this processor's instructions, OpenMP.
cmake -S "$source/vendor/llama.cpp" -B "$venv/src/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF >"$venv/src/cmake.log"
cmake --build "$venv/src/build" --parallel "${BUILD_JOBS:-$(nproc)}" --target llama-server llama-quantize >"$venv/src/build.log"
cp "$venv/src/build/bin/llama-server" "$venv/src/build/bin/llama-quantize" "$venv/bin/"
rm -r "$venv/src"
touch "$stamp"
