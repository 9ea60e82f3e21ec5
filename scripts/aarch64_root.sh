#!/usr/bin/env bash
# aarch64_root.sh FOLDER: an aarch64 Python 3.11 with numpy and ONNX Runtime, and a qemu that runs
# it, of Debian's and the package index's files, in FOLDER alone. Prints the command of that Python,
# for RTSEG_AARCH64_PYTHON. Needs apt and Debian's archive keys on an x86 Linux machine, no root.
#
# qemu-user 7.2 of Debian 12 crashes as it loads onnxruntime 1.31.1; 10.0 of its backports runs it.
set -euo pipefail
mkdir -p "$1" && folder=$(realpath "$1") && checkout=$(dirname "$(dirname "$(realpath "$0")")")

# fetch ARCHITECTURE SUITE PACKAGE...: unpack packages, without what they depend on
fetch() {
  local place=$folder/apt-$1 root=$folder/$1
  mkdir -p "$place"/{state/lists,cache/archives}/partial "$place/debs" "$root"
  echo "deb [arch=$1 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
    "http://deb.debian.org/debian $2 main" > "$place/sources.list"
  : > "$place/status"
  local options=(-qq -o "APT::Architecture=$1" -o "APT::Architectures=$1"
    -o "Dir::Etc::sourcelist=$place/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State=$place/state" -o "Dir::State::status=$place/status" -o "Dir::Cache=$place/cache"
    -o "APT::Sandbox::User=$(id -un)")
  apt-get "${options[@]}" update
  (cd "$place/debs" && apt-get "${options[@]}" download "${@:3}")
  for package in "$place"/debs/*.deb; do dpkg -x "$package" "$root"; done
}

fetch amd64 bookworm-backports qemu-user
fetch arm64 bookworm python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib \
  libc6 libgcc-s1 libstdc++6 libcrypt1 libexpat1 libffi8 libssl3 libuuid1 zlib1g libbz2-1.0 liblzma5

wheels=$folder/wheels
pinned=$(grep -E '^(numpy|onnxruntime)==' "$checkout/constraints.txt" | grep -v '< "3.11"' |
  cut -d';' -f1)
# shellcheck disable=SC2086 # one word a package
python3 -m pip download -q --no-deps --only-binary :all: --python-version 3.11 -d "$wheels" \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 $pinned
for wheel in "$wheels"/*.whl; do
  python3 -m zipfile -e "$wheel" "$folder/arm64/usr/lib/python3/dist-packages"
done
echo "$folder/amd64/usr/bin/qemu-aarch64 -L $folder/arm64 $folder/arm64/usr/bin/python3.11"
