#!/usr/bin/env bash
# What one GPU shows about this suite, unattended and without a network, each part under its own time limit:
#
#   tests     the GPU against the CPU                             tests/benchmarks/test_cuda.py
#   suite     CIFAR-10 from nothing to the report                 config/cifar10-minutes.yaml
#   training  how near a training step comes to the device        benchmarks/training.py --quick
#
#   make gpu-check PYTHON=python3 DATA=cifar10.zip [PARTS="tests suite"] [ARGS="'select=[ddim, boot]' …"]
#
# DATA is a folder or zip of images, or cifar-10-binary.tar.gz; without it the workflow downloads that. ARGS are words for
# Snakemake's --config. A part that fails or runs out of its time does not stop the next; what it did not come to is listed.
# Everything lands in one new folder, FOLDER. docs/scale.md says how to read it.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
folder=${FOLDER:-$root/results/gpu-check/$(date +%Y-%m-%dT%H-%M-%S)}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

config=()
case ${DATA:-} in
    "") ;;
    *.tar.gz) config+=("data={path: '$(realpath "$DATA")'}") ;;
    *) config+=("data={kind: images, path: '$(realpath "$DATA")', resolution: 32}") ;;
esac
config+=("$@")

mkdir -p "$(dirname "$folder")" && mkdir "$folder" || exit 2 # a new one: what an earlier check left is no part of this
folder=$(cd "$folder" && pwd)
cd "$root" || exit 2

"$python" - <<'PYTHON' | tee "$folder/device.txt" || exit 2
import sys, torch
from diffusion.runtime.device import wanted_device
device = wanted_device()
name = torch.cuda.get_device_name() if device.type == "cuda" else f"no GPU, {torch.get_num_threads()} threads"
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {device}: {name}")
PYTHON

# The jobs of a run that was ended go with it: `timeout` signals its whole process group.
part() { # name, seconds, command …
    local name=$1 seconds=$2 start=$SECONDS code outcome
    shift 2
    timeout --signal=TERM --kill-after=15 "$seconds" "$@" >"$folder/$name.log" 2>&1
    code=$?
    case $code in
        0) outcome=done ;;
        124 | 137) outcome="ended at its limit of $seconds s" ;;
        *) outcome="failed with exit code $code" ;;
    esac
    echo "$name: $outcome after $((SECONDS - start)) s ($folder/$name.log)" | tee -a "$folder/summary.txt"
    return $code
}

failed=0
for name in ${PARTS:-tests suite training}; do
    case $name in
        tests)
            limit=${TEST_SECONDS:-90}
            # Tests that have not begun by then are skipped, and listed as that.
            # shellcheck disable=SC2086  # several words
            BOOT_TEST_SECONDS=$((limit - 10)) part tests "$limit" "$python" -m pytest -o addopts= -ra -m cuda \
                -p no:cacheprovider tests/benchmarks/test_cuda.py ${TEST_OPTIONS:-} || failed=1
            grep -E "^(SKIPPED|FAILED|ERROR)|passed|failed" "$folder/tests.log" | tee -a "$folder/summary.txt"
            ;;
        suite)
            run=("$python" -m snakemake --snakefile "$root/Snakefile" --workflow-profile "$root/profiles/default"
                --directory "$folder" --cores all --resources gpu=3 --keep-going
                --configfile "$root/config/cifar10-minutes.yaml")
            [ ${#config[@]} = 0 ] || run+=(--config "${config[@]}")
            if ! part suite "${SUITE_SECONDS:-330}" "${run[@]}"; then
                failed=1
                "${run[@]}" --unlock >/dev/null 2>&1
                "${run[@]}" --dry-run --quiet host 2>&1 | sed -n '/^Job stats/,/^total/s/^/  not made: /p' | tee -a "$folder/summary.txt"
            fi
            cp -r "$folder/results/cifar10-minutes/report" "$folder/report" 2>/dev/null
            ;;
        training)
            limit=${TRAINING_SECONDS:-110}
            # shellcheck disable=SC2086  # several words
            part training "$limit" "$python" benchmarks/training.py --quick --seconds $((limit - 10)) \
                --json "$folder/training.json" ${TRAINING_OPTIONS:-} || failed=1
            tail -n 30 "$folder/training.log" | tee -a "$folder/summary.txt"
            ;;
        *)
            echo "PARTS: found $name, expected tests, suite or training" >&2
            exit 2
            ;;
    esac
done
echo "Everything is in $folder"
exit $failed
