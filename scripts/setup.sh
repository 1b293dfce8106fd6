#!/bin/sh
# Sets up the virtual environment: checks what the machine must have, says how to get what is missing (and gets it
# where it is root on a Debian-like system), then installs torch, then NS-LLM. Quick when nothing changed.
#
#   scripts/setup.sh VENV run     what `make up` needs
#   scripts/setup.sh VENV test    and what `make test` needs
#
# TORCH_PIP_ARGS goes to the installation of torch, such as: --extra-index-url URL-OF-A-CPU-INDEX (an extra one, because the
# pinned versions of what torch needs are on PyPI)
# PYTHON names the interpreter; otherwise python3.11, or python3 if that is 3.11 or newer.
set -eu

venv=$1
mode=$2
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

if [ -t 2 ]; then bold=$(printf '\033[1m') red=$(printf '\033[31m') plain=$(printf '\033[0m'); else bold='' red='' plain=''; fi

# --- is everything done already? -------------------------------------------------------------------------------------

stamp="$venv/.nsllm-$mode"
digest=$(cat pyproject.toml constraints.txt scripts/setup.sh | cksum)${TORCH_PIP_ARGS:-}
[ "$mode" = test ] && digest="$digest $(cksum <tests/solidity/package-lock.json)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$digest" ] && "$venv/bin/python" -c 'import nsllm' 2>/dev/null; then
    exit 0
fi

# --- what the machine must have --------------------------------------------------------------------------------------

debian() { have apt-get && have dpkg; }
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

find_python() {
    for name in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
        if have "$name" && fits "$name"; then
            command -v "$name"
            return
        fi
    done
}

compiler() {
    for name in cc gcc clang; do
        if have "$name"; then
            printf '%s' "$name"
            return
        fi
    done
}

browser() {
    have chromium || have chromium-browser || have google-chrome || have google-chrome-stable
}

# Sets `missing` (words for a person) and `packages` (for apt).
look() {
    missing='' packages=''
    need() { missing="$missing${missing:+, }$1" packages="$packages $2"; }
    have git || need git git
    python=$(find_python)
    if [ -z "$python" ]; then
        need "Python 3.11 or newer, with venv and headers" "$debian_python $debian_python-venv $debian_python-dev"
    else
        # A distribution's Python has its parts in packages of its own; any other carries them.
        version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
        "$python" -c 'import venv, ensurepip' 2>/dev/null || need "the venv module of $python" "$version-venv"
        "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || need "Python.h of $python" "$version-dev"
    fi
    cc=$(compiler)
    [ -n "$cc" ] || need "a C compiler" "gcc libc6-dev"
    if [ -z "$cc" ] || ! printf '#include <gmp.h>\n' | "$cc" -E - >/dev/null 2>&1; then need gmp.h libgmp-dev; fi
    if [ "$mode" = test ]; then
        { have node && have npm; } || need "node and npm (they recompile the anchor contract)" "nodejs npm"
        browser || need "Chromium (it opens the status page)" chromium
    fi
}

debian_python=python3
if debian && apt-cache show python3.11 >/dev/null 2>&1; then debian_python=python3.11; fi
look

if [ -n "$missing" ]; then
    if debian && [ "$(id -u)" = 0 ]; then
        say "${bold}installing what is missing:${plain} $missing"
        apt-get update -q >&2
        if apt-cache show python3.11 >/dev/null 2>&1; then debian_python=python3.11; fi
        look
        # shellcheck disable=SC2086 - a list of packages
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages >&2
        look
    fi
    if [ -n "$missing" ]; then
        say "${red}missing:${plain} $missing"
        if debian; then
            say "run:  ${bold}sudo apt-get update && sudo apt-get install -y$packages${plain}"
        elif have dnf; then
            say "run:  ${bold}sudo dnf install -y git python3.11 python3.11-devel gcc gmp-devel nodejs npm chromium${plain}"
        elif have pacman; then
            say "run:  ${bold}sudo pacman -S --needed git python gcc gmp nodejs npm chromium${plain}"
        elif have brew; then
            say "run:  ${bold}brew install git python@3.11 gmp node${plain}  (and chromium: brew install --cask chromium)"
        else
            say "install them with your system's package manager: git, Python 3.11 with headers, a C compiler, GMP headers"
        fi
        say "then run make again"
        exit 1
    fi
fi

# --- the environment -------------------------------------------------------------------------------------------------

if ! "$venv/bin/python" -c '' 2>/dev/null; then
    say "${bold}making $venv${plain} with $python"
    "$python" -m venv --clear "$venv"
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

say "${bold}installing torch${plain} (the default build brings CUDA, several GB; TORCH_PIP_ARGS chooses another)"
# shellcheck disable=SC2086 - a list of arguments
pip install -q ${TORCH_PIP_ARGS:-} -c constraints.txt torch
say "${bold}installing NS-LLM${plain}"
if [ "$mode" = test ]; then
    pip install -q -c constraints.txt -e '.[test,documents,images]'
    say "${bold}installing the Solidity compiler${plain}"
    (cd tests/solidity && npm ci --silent --no-fund --no-audit)
else
    pip install -q -c constraints.txt -e '.[documents,images]'
fi
printf '%s' "$digest" >"$stamp"
