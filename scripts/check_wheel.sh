#!/usr/bin/env bash
# Build sdist and wheel, install the wheel into an empty environment outside the checkout, and run the smoke commands there.
#   scripts/check_wheel.sh            all of it, packages from the index (GBs: torch); what a user does
#   scripts/check_wheel.sh --here     packages of the active environment serve, only expresser's own come from the wheel: seconds
# PYTHON names the interpreter. Argument --demo runs the demo too: minutes.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
here= demo=
for word in "$@"; do
  case $word in
    --here) here=yes ;;
    --demo) demo=yes ;;
    *) echo "error: $word: the arguments are --here and --demo" >&2; exit 2 ;;
  esac
done
python=${PYTHON:-python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A build sees what git would give a stranger, and builds the wheel from the sdist.
mkdir "$work/source" "$work/dist" "$work/empty"
if git -C "$root" rev-parse --git-dir >/dev/null 2>&1; then
  (cd "$root" && git ls-files -z --cached --others --exclude-standard | xargs -0 -I{} sh -c '[ ! -f "$1" ] || printf "%s\0" "$1"' _ {} |
    tar --null -T - -cf -) | tar -xf - -C "$work/source"
else
  cp -R "$root/." "$work/source"
fi
if [ -n "$here" ]; then # the build's own packages too: no index is asked
  "$python" -m build --no-isolation --outdir "$work/dist" "$work/source" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
else
  "$python" -m venv "$work/builder"
  "$work/builder/bin/pip" install --quiet --disable-pip-version-check build
  "$work/builder/bin/python" -m build --outdir "$work/dist" "$work/source" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
fi
wheel=$(echo "$work"/dist/*.whl)
echo "built $(cd "$work/dist" && du -h ./*.whl ./*.tar.gz | awk '{printf "%s (%s) ", substr($2, 3), $1}')"

"$python" -m venv "$work/venv"
if [ -n "$here" ]; then
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-index "$wheel"
  # Behind its own: what the wheel brings is found first, everything else in the active environment. Its .pth files, which may point
  # to a checkout, are not read.
  own=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$python" -c 'import sys; print(*[folder for folder in sys.path if folder.endswith("site-packages")], sep="\n")' >"$own/zz_active.pth"
else
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check -c "$root/constraints.txt" torch
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$wheel"
fi

cd "$work/empty"
unset PYTHONPATH
expresser="$work/venv/bin/expresser"
"$work/venv/bin/python" - "$work/venv" <<'PY'
import importlib, sys
for name in ("expresser", "pretrain", "finetune", "translate"):
    where = importlib.import_module(name).__file__
    assert where.startswith(sys.argv[1]), f"{name} comes from {where}, not from the wheel"
PY
"$expresser" --version
for command in "" $("$work/venv/bin/python" -c 'from expresser.cli import commands; print(*commands())'); do
  # shellcheck disable=SC2086 # no command is one word less
  "$expresser" $command --help >"$work/help.txt"
  grep -q "expresser ${command:-demo}" "$work/help.txt" || { echo "error: expresser $command --help has no example" >&2; exit 1; }
done
status=0
"$expresser" doctor --json --timeout 2 >"$work/doctor.json" || status=$?
"$work/venv/bin/python" - "$work/doctor.json" "$status" <<'PY'
import json, sys
said = json.load(open(sys.argv[1]))
broken = [f"{each['name']}: {each['found']}" for each in said["findings"] if each["state"] == "broken"]
assert sys.argv[2] == "0" and said["ok"] and not broken, broken
PY
"$expresser" simulate rna --cells 60 --genes 60 --types 2 --modules 2 --median-depth 300 --out sim >/dev/null
"$expresser" corpus build sim/rna.h5ad --obs cell_type --out corpus >/dev/null
"$expresser" corpus verify corpus --deep
"$expresser" pretrain small --corpus corpus --out run --model.d-model 16 --model.n-layers 1 --data.max-steps 3 --data.valid-cells 8 --precision no
[ -s run/report.html ] # the page's template came along
[ -z "$demo" ] || "$expresser" demo --out demo
echo "the wheel works outside the checkout, with $("$work/venv/bin/python" --version)"
