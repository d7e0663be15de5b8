#!/usr/bin/env bash
# The newcomer's proof: a fresh Debian with nothing but the packages that README.md names, and an ordinary user in it who
# follows README.md word for word: clone, `make serve`, the curl line that it prints, README's Python, README's commands.
#     deploy/newcomer.sh [--cache DIR] [--test] [--root DIR]
# --cache DIR  a folder like ~/.cache/inferno with what was compiled or downloaded before (else llama.cpp is compiled: 5 minutes)
# --test       `make test` too (much longer)
# --root DIR   where the fresh Debian is made, and kept; default: a temporary folder that is removed
# Root, debootstrap. Mounts and processes live in namespaces of their own and end with this script. Port 8080 must be free.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
cache="" with_test="" root="" keep=""
while (($#)); do
    case $1 in
    --cache) cache=$(cd "$2" && pwd) && shift 2 ;;
    --root) root=$2 keep=1 && shift 2 ;;
    --test) with_test=1 && shift ;;
    *) echo "usage: $0 [--cache DIR] [--test] [--root DIR]" >&2 && exit 2 ;;
    esac
done
if [[ ${NEWCOMER_INSIDE:-} != 1 ]]; then # once more, with mounts and processes of its own
    NEWCOMER_INSIDE=1 exec unshare --mount --pid --fork --kill-child "$0" ${cache:+--cache "$cache"} ${root:+--root "$root"} ${with_test:+--test}
fi
root=${root:-$(mktemp -d)}
[[ -n $keep ]] || trap 'umount -R "$root/proc" "$root/dev" 2>/dev/null || true; rm -rf --one-file-system "$root"' EXIT

# The packages, as README.md names them.
packages=$(sed -n 's/^On Debian 12 with `\([^`]*\)`.*/\1/p' "$here/README.md")
extra=$(sed -n 's/.*and `\([a-z]*\)` to try it.*/\1/p' "$here/README.md")
[[ -n $packages && -n $extra ]] || { echo "README.md does not name its packages as this script expects" >&2 && exit 1; }
if [[ ! -e $root/etc/debian_version ]]; then
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v '^#' | grep -oE '(https?|file)://[^ ]*/debian/?' | head -n 1 || true)
    echo "» a fresh Debian in $root"
    debootstrap --variant=minbase bookworm "$root" "${mirror:-http://deb.debian.org/debian}" >/dev/null
fi
chmod 755 "$root" # mktemp makes it private, and an ordinary user in it needs its root
# What the machine needs to reach package sources at all; a newcomer's machine has its own.
cp -a /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/apt.conf.d "$root/etc/apt/" 2>/dev/null || true
cp -L /etc/resolv.conf "$root/etc/" 2>/dev/null || true
mkdir -p "$root/etc/ssl/certs" && cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/machine-ca.pem"
printf '[global]\ncert = /etc/ssl/certs/machine-ca.pem\n' >"$root/etc/pip.conf"
for file in /etc/pip.conf "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf"; do
    [[ ! -e $file ]] || grep -iE '^ *(index-url|extra-index-url|trusted-host|proxy) *= *[^f]' "$file" >>"$root/etc/pip.conf" || true
done
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
rm -rf "$root/clone" && git clone -q --bare "$here" "$root/clone" # what is committed, with or without a work tree of its own
inside() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive chroot "$root" "$@"; }
echo "# apt-get install $packages $extra"
inside apt-get update -q >/dev/null
# shellcheck disable=SC2086 # a list of words
inside apt-get install -q -y $packages $extra >/dev/null
inside id newcomer >/dev/null 2>&1 || inside useradd -m newcomer
inside git config --system --add safe.directory '*' # the clone's source belongs to another user
if [[ -n $cache ]]; then
    inside install -d -o newcomer -g newcomer /home/newcomer/.cache /home/newcomer/.cache/inferno
    cp -a "$cache/." "$root/home/newcomer/.cache/inferno/"
    inside chown -R newcomer:newcomer /home/newcomer/.cache
fi

# README's own lines, taken out of README at the moment they are followed.
mkdir -p "$root/tmp/newcomer"
python3 - "$here/README.md" "$root/tmp/newcomer" <<'PYTHON'
import pathlib, re, sys
blocks = re.findall(r"^```(bash|python)\n(.*?)^```", pathlib.Path(sys.argv[1]).read_text(), re.M | re.S)
folder = pathlib.Path(sys.argv[2])
(folder / "client.py").write_text(next(text for language, text in blocks if language == "python"))
(folder / "commands.sh").write_text("".join(text for language, text in blocks if language == "bash" and not text.startswith("make")))
PYTHON
cat >"$root/tmp/newcomer/follow.sh" <<'FOLLOW'
set -euo pipefail
cd
[[ -d inferno ]] || { echo "\$ git clone … inferno" && git clone -q /clone inferno; }
cd inferno
echo "\$ make serve"
setsid make serve >/tmp/newcomer/serve.log 2>&1 &
server=$!
stop() { kill -INT -- "-$server" 2>/dev/null || true; }
trap stop EXIT
began=$SECONDS
until grep -q 'Stop with Ctrl-C' /tmp/newcomer/serve.log; do
    kill -0 "$server" 2>/dev/null || { cat /tmp/newcomer/serve.log && exit 1; }
    sleep 1
done
cat /tmp/newcomer/serve.log
echo "(ready after $((SECONDS - began)) s)"
line=$(sed -n '/^  curl /,/[^\\]$/p' /tmp/newcomer/serve.log)
key=$(grep -oE 'inf_[0-9A-Za-z_]+' /tmp/newcomer/serve.log | head -n 1)
echo "\$ $line"
eval "$line" | tee /tmp/newcomer/stream.txt
grep -q '^data: \[DONE\]' /tmp/newcomer/stream.txt
echo "\$ python client.py   # README's lines, with the key that make serve printed"
sed "s/inf_…/$key/" /tmp/newcomer/client.py >/tmp/newcomer/with_key.py
.venv/bin/python /tmp/newcomer/with_key.py
while read -r command; do
    echo "\$ $command"
    eval "$command"
done </tmp/newcomer/commands.sh
kill -INT -- "-$server"
wait "$server" || true
trap - EXIT
tail -n 3 /tmp/newcomer/serve.log
if [[ ${1:-} == test ]]; then
    echo "\$ make test"
    make test
fi
echo "newcomer: every line of README worked"
FOLLOW
chmod -R a+rwX "$root/tmp/newcomer"
inside su - newcomer -c "bash /tmp/newcomer/follow.sh ${with_test:+test}" </dev/null
