#!/bin/sh
# Builds the opponents of the benchmarks for this machine, in environments of their own: several minutes, once.
#
#   benchmarks/setup.sh VENV HIVEMIND_VENV GPTCACHE_VENV PYTHON
#
# JOBS is how many compilers run at once (default: one a processor). TORCH_PIP_ARGS goes to the installation of torch, which
# hivemind needs, as in scripts/setup.sh.
set -eu

venv=$1
hivemind=$2
gptcache=$3
python=$4
cd "$(dirname "$0")/.."

stamp="$gptcache/.bench"
digest=$(cat benchmarks/requirements_gptcache.txt benchmarks/setup.sh | cksum)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$digest" ]; then
    echo "installing GPTCache" >&2
    if "$python" -m venv --clear "$gptcache" &&
        "$gptcache/bin/python" -m pip install -q --disable-pip-version-check -r benchmarks/requirements_gptcache.txt; then
        printf '%s' "$digest" >"$stamp"
    else
        rm -rf "$gptcache"
        echo "GPTCache does not install here: the benchmark of reuse leaves it out" >&2
    fi
fi
[ ! -f "$stamp" ] || "$gptcache/bin/python" -c 'from importlib.metadata import version; print("gptcache", version("gptcache"))'

stamp="$venv/.bench"
digest=$(cat benchmarks/requirements.txt benchmarks/setup.sh | cksum)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$digest" ]; then
    for compiler in c++ g++ clang++; do
        command -v "$compiler" >/dev/null 2>&1 && found=$compiler
    done
    if [ -z "${found:-}" ]; then
        echo "llama.cpp is built from source: install a C++ compiler (Debian: apt-get install g++), then run this again" >&2
        exit 1
    fi
    echo "building llama.cpp for this machine, which takes minutes" >&2
    "$python" -m venv --clear "$venv"
    # Everything that its own build turns on by default, for this processor; without the parts for images.
    CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF ${CMAKE_ARGS:-}" \
        CMAKE_BUILD_PARALLEL_LEVEL="${JOBS:-$(getconf _NPROCESSORS_ONLN)}" \
        "$venv/bin/python" -m pip install -q --disable-pip-version-check \
        --no-binary llama-cpp-python -r benchmarks/requirements.txt
    printf '%s' "$digest" >"$stamp"
fi
"$venv/bin/python" -c 'import llama_cpp; print("llama-cpp-python", llama_cpp.__version__, llama_cpp.llama_print_system_info().decode())'

stamp="$hivemind/.bench"
digest=$(cat benchmarks/requirements_hivemind.txt benchmarks/setup.sh constraints.txt | cksum)${TORCH_PIP_ARGS:-}
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$digest" ]; then
    echo "installing hivemind, with a torch of its own" >&2
    "$python" -m venv --clear "$hivemind"
    # hivemind wants another protobuf than the product: only torch is held to our versions.
    # shellcheck disable=SC2086 # several arguments
    "$hivemind/bin/python" -m pip install -q --disable-pip-version-check ${TORCH_PIP_ARGS:-} -c constraints.txt torch
    "$hivemind/bin/python" -m pip freeze | sed -n 's/^\(torch==[0-9.]*\).*/\1/p' >"$hivemind/torch.txt"
    "$hivemind/bin/python" -m pip install -q --disable-pip-version-check -c "$hivemind/torch.txt" -r benchmarks/requirements_hivemind.txt
    printf '%s' "$digest" >"$stamp"
fi
"$hivemind/bin/python" -c 'import hivemind; print("hivemind", hivemind.__version__)'
