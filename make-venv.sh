#!/usr/bin/env bash
# make-venv.sh VENV PYTHON STAMP WHAT: makes the virtual environment for the Makefile and pip-installs WHAT into it,
# together with the distribution in client/ that it depends on.
#
# STAMP is written at the end only, so an environment that an interrupted or failed run leaves is made again from
# nothing. Every reason for which this cannot work is one line that says what to do.
set -euo pipefail

venv=$1 python=$2 stamp=$3 what=$4

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

here=$(pwd)
[[ -w . && ( ! -e $venv || -w $venv ) ]] ||
    fail "$here cannot be written by $(id -un); run make as $(stat -c %U .), or in a copy of the folder that is yours"
command -v "$python" >/dev/null || fail "$python not found; install it (apt-get install python3 python3-venv), or name another: make PYTHON=..."
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "$python does not run"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is Python $version, and 3.11 is the oldest that works; name a newer one: make PYTHON=python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv; install it: apt-get install python$version-venv (or python3-venv)"

log=$(mktemp)
done=
cleanup() {
    rm -f "$log"
    [[ $done ]] || rm -f "$venv"/.installed*
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The stamp names the Python and the place that the environment was made for: it works with no other.
made_for="$version $here"
if [[ $(cat "$venv/.installed" 2>/dev/null) != "$made_for" ]]; then
    rm -rf "$venv"
    "$python" -m venv "$venv" >"$log" 2>&1 || fail "$python -m venv $venv: $(tail -n 1 "$log")"
fi
rm -f "$stamp"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable client --editable "$what" >"$log" 2>&1 ||
    fail "pip cannot install $what: $(grep -m 1 '^ *ERROR' "$log" || tail -n 1 "$log"); it needs a package index (see pip config list); run make again to retry"
printf '%s\n' "$made_for" >"$stamp"
done=1
