#!/usr/bin/env bash
# Runs a command as root in mount and pid namespaces of its own, with accounts that exist only there. What the command
# leaves running or mounted ends with it.
#
#   tests/shell/namespace.sh bats tests/shell/story.bats
#
# The command finds KMSFS_TEST_DIR, an empty directory that is removed afterwards.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [[ ${1-} != --inside ]]; then
    [[ $(id -u) == 0 ]] || { echo "$0: must be run as root" >&2; exit 1; }
    dir=$(mktemp -d "${KMSFS_TEST_PARENT:-/var/tmp}/kmsfs-test.XXXXXXXX")
    trap 'rm -rf --one-file-system "$dir"' EXIT
    status=0
    unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
        env KMSFS_TEST_DIR="$dir" "$here/namespace.sh" --inside "$@" || status=$?
    exit "$status"
fi
shift

accounts() { # NAME UID
    printf '%s:x:%d:%d::%s:/bin/bash\n' "$1" "$2" "$2" "$KMSFS_TEST_DIR/home/$1" >>"$KMSFS_TEST_DIR/etc/passwd"
    printf '%s:x:%d:\n' "$1" "$2" >>"$KMSFS_TEST_DIR/etc/group"
    printf '%s:!:19000::::::\n' "$1" >>"$KMSFS_TEST_DIR/etc/shadow"
    install -d -m 700 -o "$2" -g "$2" "$KMSFS_TEST_DIR/home/$1"
}

chmod 755 "$KMSFS_TEST_DIR"
mkdir -p "$KMSFS_TEST_DIR"/{home,tmp}
chmod 1777 "$KMSFS_TEST_DIR/tmp"
# The whole of /etc: a file alone would lose its mount as soon as somebody outside replaces it.
cp -a /etc "$KMSFS_TEST_DIR/etc"
accounts alice 61001 # a key user
accounts bob 61002   # has every Unix right and no key
accounts carol 61003 # administers keys
accounts dora 61004  # has no Unix right to the tables
accounts erin 61005  # is in a group that policies name
accounts witness-of-leaks 61006
printf 'finance:x:62000:alice,bob,carol\n' >>"$KMSFS_TEST_DIR/etc/group"
printf 'readers:x:62001:erin\n' >>"$KMSFS_TEST_DIR/etc/group"
mount --bind "$KMSFS_TEST_DIR/etc" /etc
mountpoint -q /sys/fs/fuse/connections || mount -t fusectl none /sys/fs/fuse/connections

export TMPDIR="$KMSFS_TEST_DIR/tmp" LC_ALL=C.UTF-8 KMSFS_PRIVATE_NAMESPACE=1
# A child, not exec: process 1 of the namespace also has to take leave of orphaned daemons.
status=0
"$@" || status=$?
exit "$status"
