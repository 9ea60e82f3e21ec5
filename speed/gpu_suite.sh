#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in under 9 minutes, without network: bash speed/gpu_suite.sh [FOLDER]
#
# Needs rtseg installed (pip install -e ".[dev,gpu]"), with a torch built for CUDA and triton; uses
# tensorrt or tensorrt_rtx, onnxruntime-gpu and torch_tensorrt where they are there. Leaves in FOLDER
# (gpu-results): suite.json, how each step ended; tests.xml; the machine's table and its pages;
# against_compile.json, with the roofline; labels_*.json, the Triton kernels; label_kernel.json, an
# engine with its labels inside against one with the kernel behind it; every step's log. A step that
# fails or runs out of its time does not stop the others.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-gpu-results}
python=${PYTHON:-python3}
device=${RTSEG_SUITE_DEVICE:-cuda}
sizes=${RTSEG_SUITE_SIZES:-512x1024 768x1536 1024x2048}
models=${RTSEG_SUITE_MODELS:-csfcn csfcn_tiny sfnet_r18 bisenetv2}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$folder/cache}

missing=$("$python" - <<'PY'
import importlib.util as u
need = {"rtseg": "-e .", "torch": "torch", "onnx": "onnx", "onnxscript": "onnxscript",
        "onnxslim": "onnxslim", "cv2": "opencv-python", "pytest": "pytest", "typer": "typer",
        "pydantic": "pydantic", "matplotlib": "matplotlib", "safetensors": "safetensors"}
print(" ".join(pip for name, pip in need.items() if u.find_spec(name) is None))
PY
)
if [ -n "$missing" ]; then
  echo "gpu_suite: not installed: pip install $missing" >&2
  exit 2
fi

steps=()
step() { # NAME SECONDS COMMAND...: runs it, keeps its output in NAME.log
  local name=$1 limit=$2 began=$SECONDS status
  shift 2
  echo "gpu_suite: $name (at most $limit s)" >&2
  timeout --kill-after=5 "$limit" "$@" >"$folder/$name.out" 2>"$folder/$name.log"
  status=$?
  steps+=("{\"step\": \"$name\", \"exit\": $status, \"seconds\": $((SECONDS - began)), \"limit_s\": $limit}")
  [ "$status" -eq 0 ] || echo "gpu_suite: $name ended with $status: $folder/$name.log" >&2
}

options=(--device "$device" --seconds 1 --runs 50)
for size in $sizes; do sized+=(--size "$size"); done
largest=${sizes##* }

cd "$folder"
step machine 30 "$python" -m rtseg doctor --json
# The tests hold the Triton kernels' correctness too.
step tests 145 "$python" -m pytest -q -m gpu "$root/tests" -p no:cacheprovider --junitxml "$folder/tests.xml"
# shellcheck disable=SC2086
step table 150 "$python" -m rtseg bench table $models "${sized[@]}" -o "$folder" "${options[@]}" --json
step against_compile 110 "$python" -m rtseg bench ${models%% *} --size "$largest" --peer compile --roofline "${options[@]}" --json
# The kernels' gain on a bilinear end and on a shuffled one, and the pixels that differ from float32.
for model in csfcn_tiny csfcn; do
  step "labels_$model" 30 "$python" "$root/scripts/label_cost.py" "$model" --size "$largest" --device "$device" --seconds 2 --json
done
# Proven at load against the reference that travels with it, as every engine.
# shellcheck disable=SC2016
step label_kernel 40 bash -c '
  "$1" -m rtseg export "$2" --size "$3" --precision fp16 --to tensorrt -o engines >&2 &&
  "$1" -m rtseg export "$2" --size "$3" --precision fp16 --to tensorrt --label-kernel -o engines >&2 &&
  "$1" -m rtseg bench engines/*.engine "${@:4}" --json' bash "$python" "${models%% *}" "$largest" "${options[@]}"
for name in machine table against_compile labels_csfcn_tiny labels_csfcn label_kernel; do mv "$name.out" "$name.json"; done
{
  echo '{"steps": ['
  (IFS=,; echo "${steps[*]}")
  echo ']}'
} >"$folder/suite.json"
cat "$folder/suite.json"
