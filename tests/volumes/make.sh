#!/usr/bin/env bash
# Makes the stores of a new format version, once: tests/volumes/make.sh KMSFS-BINARY tests/volumes/vN
#
# The directory must not exist: what is frozen is never made anew (README.md).
# Where a name is given twice, one is that of a file and one is not.
# shellcheck disable=SC2094
set -euo pipefail

export LC_ALL=C.UTF-8
binary=$(realpath "$1")
mkdir "$2"
out=$(realpath "$2")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
export KMSFS_ANCHOR=$work/anchor
mnt=$work/mnt
trap 'umount -l "$mnt" 2>/dev/null || true; rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir "$mnt"
# The trail tells by which program something was done, and is not to tell more of this host.
kmsfs=$work/kmsfs
cp "$binary" "$kmsfs"
umask 077

# The pseudorandom bytes of a name: SHA-256 of 'NAME:0', 'NAME:1' and so on, one after the other, cut.
stream() { # NAME BYTES
    local i
    for ((i = 0; i * 32 < $2; i++)); do printf '%s:%d' "$1" "$i" | sha256sum | cut -c 1-64; done | xxd -r -p | head -c "$2"
}

stream key 64 >"$work/key"
printf 'a frozen pässphrase\n' >"$work/passphrase"

fill_plain() { # in the table without a policy
    local size
    for size in 0 1 3551 3552 4096; do stream "size-$size" "$size" >"size-$size"; done
    # A hole of 111 blocks, and data: an archive is not to hold more of what does not compress.
    stream size-458753 4097 | dd of=size-458753 bs=4096 seek=111 status=none
    stream sparse 10 >sparse
    truncate -s 64M sparse
    mkdir folder folder/deeper
    stream deeper 100 >folder/deeper/item
    stream long 20 >"$(printf 'n%.0s' {1..255})"
    stream latin 20 >$'caf\xe9'
    ln -s folder/deeper/item symlink
    mkfifo fifo
    stream links 600 >one
    ln one two
    ln one folder/three
    setfattr -n user.author -v 'Ada' size-1
    setfattr -n user.note -v 'of a folder' folder
    chown 61001:61001 size-1 fifo folder
    chmod 640 size-1
    chmod 2750 folder
}

as_61001() { setpriv --reuid 61001 --regid 61001 --clear-groups "$@"; }

fill() { # CREDENTIAL...
    "$kmsfs" mount "$work/store" "$mnt" "$@" --log-file "$work/log"
    export KMSFS_AT=$mnt
    "$kmsfs" table create plain --encryption owned
    "$kmsfs" table create shared --encryption managed
    "$kmsfs" key create orders --admin uid:0 --user uid:0 --description 'for the orders'
    "$kmsfs" table create orders --key orders --owner 61001 --group 61001 --mode 755
    "$kmsfs" key create spare --admin uid:0 --admin uid:61001
    (umask 022 && cd "$mnt/plain" && fill_plain)
    stream managed 2000 >"$mnt/shared/item"
    stream 1001 1001 >"$mnt/orders/1001.json"
    stream 1002 600 >"$mnt/orders/1002.json"
    chown 61001:61001 "$mnt"/orders/*.json
    # A denial for the trail, and then a policy by which it would be none.
    if as_61001 cat "$mnt/orders/1001.json" 2>/dev/null; then exit 1; fi
    "$kmsfs" policy put orders "$here/orders.policy.json"
    as_61001 cat "$mnt/orders/1001.json" >/dev/null
    sync -f "$mnt/plain"
}

archive() { # NAME
    tar -C "$work" --create --gzip --file "$out/$1.tar.gz" --sparse --xattrs --xattrs-include='*' --numeric-owner \
        --sort=name --exclude=store/lock store
    rm -rf "$work/store"
}

finish() { # NAME
    "$kmsfs" umount "$mnt"
    flock "$work/store/lock" true
    archive "$1"
}

# The daemon dies with changes of flushed items that only the journal has, and with some that were never flushed.
kill_in_the_middle() {
    stream 'size-4096 again' 4096 | dd of="$mnt/plain/size-4096" bs=4096 conv=notrunc,fsync status=none
    stream 'size-3551 again' 100 | dd of="$mnt/plain/size-3551" bs=100 seek=10 conv=notrunc,fsync status=none
    truncate -s 1000 "$mnt/plain/size-3552"
    stream 'one more' 3000 >>"$mnt/plain/one"
    mv "$mnt/orders/1002.json" "$mnt/orders/renamed.json"
    stream 'new' 700 >"$mnt/orders/new.json"
    kill -9 "$(cut -d ' ' -f 1 "$work/store/lock")"
    umount -l "$mnt"
    flock "$work/store/lock" true
    [[ -n $(ls "$work/store/journal") ]] || { echo 'nothing is left to be replayed' >&2; exit 1; }
}

"$kmsfs" init "$work/store" --key-file "$work/key" --label 'a key file'
fill --key-file "$work/key"
finish key-file

"$kmsfs" init "$work/store" --passphrase-file "$work/passphrase" --kdf-memory 64 --label 'a passphrase'
fill --passphrase-file "$work/passphrase"
finish passphrase

"$kmsfs" init "$work/store" --key-file "$work/key" --label 'a key file'
fill --key-file "$work/key"
kill_in_the_middle
archive killed
chmod 644 "$out"/*
ls -l "$out"
