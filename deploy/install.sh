#!/bin/sh
# What `make install` runs: a virtual environment with everything pinned.
#
#   deploy/install.sh VENV PYTHON
#
# TORCH_INDEX names an extra package index, for a build of torch other than the default one.
# The whole output of pip is in VENV/install.log. A run that was cut short starts over, since a
# package that is half there looks installed to pip.
set -eu

venv=$1
python=$2
torch_index=${TORCH_INDEX:-}
unfinished=$venv/.unfinished
log=$venv/install.log
started=$(date +%s)

say() { printf 'install: %s\n' "$*"; }
fail() {
    printf 'install: %s\n' "$*" >&2
    exit 1
}
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

create_venv() {
    if ! is_new_enough "$python"; then
        for other in python3.13 python3.12 python3.11; do
            if is_new_enough "$other"; then
                fail "$python is missing or older than 3.11, but $other is here: make install PYTHON=$other"
            fi
        done
        fail "$python is missing or older than 3.11: install Python 3.11 to 3.13, then make install PYTHON=/path/to/it"
    fi
    say "creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" ||
        fail "$python cannot make a virtual environment; Debian and Ubuntu keep that in the package python3-venv"
    touch "$unfinished"
}

if [ -e "$unfinished" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    create_venv
fi
touch "$unfinished"

say "fetching some 130 packages, torch the largest by far (pip's words are in $log)"
set -- -c constraints.txt -e '.[dev]'
if [ -n "$torch_index" ]; then
    set -- --extra-index-url "$torch_index" "$@"
elif [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
    say "no NVIDIA driver here: TORCH_INDEX=<url of PyTorch's index of CPU builds> may save gigabytes"
fi

# Unbuffered, or the progress would come all at once, at the end.
{
    PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
        "$venv/bin/python" -m pip install --progress-bar off "$@" 2>&1 || echo 'pip: failed'
} | tee "$log" | while IFS= read -r line; do
    case $line in
    *Downloading*' MB)' | *Downloading*' GB)')
        wheel=${line##*Downloading }
        say "fetching ${wheel%%-[cp][py][0-9]*} (${wheel##* (}"
        ;;
    ERROR:*) say "$line" ;;
    'Installing collected packages'*) say 'unpacking' ;;
    'pip: failed') exit 1 ;;
    esac
done || fail "pip failed; the reason is at the end of $log"

rm "$unfinished"
say "done in $(($(date +%s) - started)) s"
