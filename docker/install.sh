#!/bin/sh
# Makes an environment of a vehicle: a wheel of rtseg with its extras, less what never runs there.
#   docker/install.sh ENVIRONMENT "WHEEL[EXTRAS]" [PACKAGE...]
# VENV_OPTIONS go to venv. The Dockerfile runs this, and .ci/run does.
set -eu
environment=$1
shift
constraints=$(dirname "$0")/../constraints.txt
python3 -m venv ${VENV_OPTIONS:-} "$environment"
python=$environment/bin/python
pip() { "$python" -m pip --disable-pip-version-check --no-cache-dir "$@"; }
pip install -q --no-compile -c "$constraints" "$@"
# OpenCV without windows: the same module under another name, which no requirement can say.
pip uninstall -q -y opencv-python
pip install -q --no-compile --no-deps \
  "opencv-python-headless==$(sed -n 's/^opencv-python==//p' "$constraints")"
pip uninstall -q -y setuptools pip
cd "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
# Of OpenVINO: devices and formats that artifacts for a CPU do not use, and headers for compilers.
rm -rf openvino/include openvino/cmake openvino/libs/cache.json \
  openvino/libs/libopenvino_intel_gpu_plugin.so openvino/libs/libopenvino_intel_npu_plugin.so
for frontend in gguf jax paddle pytorch tensorflow tensorflow_lite; do
  rm -f openvino/libs/libopenvino_${frontend}_frontend.so.*
done
rm -rf openvino/tools/ovc numpy/f2py zstandard/_cffi.*  # converters, and one codec twice
find . -type d -name tests -prune -exec rm -rf {} +
# Symbols for debuggers, of those whose authors left them in.
command -v strip >/dev/null && find lz4 yaml zstandard -name "*.so" -exec strip --strip-unneeded {} +
# Compiled now: on a read-only root every start would do it again.
"$python" -m compileall -q . || true
