#!/usr/bin/env bash
# Packages for a GPU machine without a network, as wheels in a folder to take along:
#
#   bash scripts/gpu_suite_wheels.sh [FOLDER] [CAMVID]      # gpu-wheels; PYTHON_VERSION=3.12
#
# `python -m rtseg.scripts.gpu_suite --wheels FOLDER` uses each only where the machine has none of
# its own. Nothing here needs CUDA; it is under 20 MB in wheels. CAMVID, the folder of that data set
# in SegNet's version, is packed into FOLDER/camvid for the suite's training.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-gpu-wheels}
python=${PYTHON:-python3}
packages=(
  pydantic pydantic-core annotated-types typing-inspection typing-extensions  # cards
  psutil nvidia-ml-py                                                         # the machine
  safetensors PyYAML                                                          # weights, recipes
  typer rich click shellingham markdown-it-py mdurl pygments annotated-doc    # what scripts share
  onnxscript onnx-ir onnxslim ml-dtypes colorama packaging                    # exports
)
platforms=()
for tag in manylinux_2_28 manylinux_2_17 manylinux2014 manylinux_2_12 manylinux2010; do
  platforms+=(--platform "${tag}_${ARCH:-x86_64}")
done
mkdir -p "$folder"
rm -f "$folder"/*.whl
"$python" -m pip download -q -d "$folder" --no-deps --only-binary=:all: \
  --python-version "${PYTHON_VERSION:-3.12}" "${platforms[@]}" \
  -c "$root/constraints.txt" "${packages[@]}"
size=$(du -cm "$folder"/*.whl | tail -n 1 | cut -f1)
if [ "$size" -gt 20 ]; then
  echo "gpu_suite_wheels: $size MB of wheels are more than 20" >&2
  exit 1
fi
echo "gpu_suite_wheels: $(find "$folder" -name '*.whl' | wc -l) packages, $size MB, in $folder"
if [ -n "${2:-}" ]; then
  link=$(mktemp -d)
  ln -s "$root" "$link/rtseg"
  trap 'rm -r "$link"' EXIT
  PYTHONPATH=$link "$python" -m rtseg.scripts.gpu_steps pack "$2" "$folder/camvid"
  echo "gpu_suite_wheels: CamVid, $(du -sm "$folder/camvid" | cut -f1) MB"
fi
