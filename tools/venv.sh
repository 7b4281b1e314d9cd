#!/bin/sh
# Make a virtual environment in the folder $1 with a Python that this project supports, or say in
# one line why that is impossible. $PYTHON names the Python to take; else the usual names are tried.
set -eu

venv=$1
oldest='3, 11'
newest='3, 13'

supported() {
    "$1" -c "import sys; sys.exit(not ($oldest) <= sys.version_info[:2] <= ($newest))" 2>/dev/null
}

python=
seen=
for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if supported "$name"; then
        python=$name
        break
    fi
    version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    seen="$seen $name is $version;"
done
if [ -z "$python" ]; then
    wanted="$(echo "$oldest" | tr -d ' ' | tr , .) to $(echo "$newest" | tr -d ' ' | tr , .)"
    echo "make: needs Python $wanted;${seen:- found none;} install one or set PYTHON=…" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "make: $python cannot make virtual environments: install its venv module" \
        "(on Debian and Ubuntu the package python3-venv)" >&2
    exit 1
fi

echo "Making $venv with $("$python" --version); torch is large, the first time takes minutes."
"$python" -m venv --clear "$venv"
# The pip that comes with an older Python takes twice as long to install the same; but it will do.
# shellcheck disable=SC2086  # several options
"$venv/bin/python" -m pip install --disable-pip-version-check --quiet --retries 0 --upgrade \
    ${PIP_ARGS:-} pip || echo "Going on with the pip that came with $python."
