#!/usr/bin/env bats
# What programs expect of a file system, through the tools that they are.

load common

setup() {
    new_paths
    start_store
    mount_store
    kmsfs table create a --user alice --owner alice --group finance --mode 2770
    kmsfs table create b --key a --owner alice --group finance --mode 2770
    A=$MNT/a B=$MNT/b
}

@test "write at any offset, append, truncate" {
    as alice sh -c "printf 0123456789 >$A/x; printf abc | dd of=$A/x bs=1 seek=4 conv=notrunc status=none; printf END >>$A/x"
    equal "$(as alice cat "$A/x")" '0123abc789END'
    as alice truncate -s 5 "$A/x"
    equal "$(as alice cat "$A/x")" '0123a'
    as alice sh -c "printf Z | dd of=$A/x bs=1 seek=9000 conv=notrunc status=none"
    equal "$(stat -c %s "$A/x")" 9001
    equal "$(as alice sh -c "tr -d '\\0' <$A/x")" '0123aZ'
    as alice sh -c ": >$A/x"
    equal "$(stat -c %s "$A/x")" 0
}

@test "many writers append to one item, and no line is lost or torn" {
    as alice touch "$A/log"
    for n in 1 2 3 4; do
        background as alice bash -c 'for ((i = 0; i < 250; i++)); do echo "writer $1 line $i" >>"$2"; done' w "$n" "$A/log"
    done
    await
    equal "$(as alice sort -u "$A/log" | grep -cE '^writer [1-4] line [0-9]+$')" 1000
    equal "$(as alice wc -l <"$A/log" || as alice sh -c "wc -l <$A/log")" 1000
}

@test "folders inside a table, renamed with all that is in them" {
    as alice mkdir -p "$A/2026/03/02"
    as alice sh -c "echo deep >$A/2026/03/02/x"
    as alice mv "$A/2026" "$A/archive"
    equal "$(as alice cat "$A/archive/03/02/x")" deep
    fails_with "$ENOENT" stat "$A/2026"
    fails_with 'Directory not empty' as alice rmdir "$A/archive/03"
    fails_with 'cannot move' as alice mv "$A/archive" "$A/archive/03/inside"
    as alice rm -r "$A/archive"
    equal "$(ls -A "$A")" ''
}

@test "rename over an existing item replaces it whole, under the eyes of readers" {
    as alice sh -c "echo old >$A/x"
    background as alice bash -c 'for ((i = 0; i < 200; i++)); do echo "new $i" >"$1/tmp"; mv "$1/tmp" "$1/x"; done' m "$A"
    mover=${BACKGROUND[0]}
    while kill -0 "$mover" 2>/dev/null; do
        [[ $(as alice cat "$A/x") =~ ^(old|new\ [0-9]+)$ ]]
    done
    await
    equal "$(as alice cat "$A/x")" 'new 199'
}

@test "exchange and no-replace" {
    as alice sh -c "echo 1 >$A/x; echo 2 >$A/y"
    as alice probe exchange "$A/x" "$A/y"
    equal "$(as alice cat "$A/x" "$A/y" | paste -sd' ')" '2 1'
    as alice mv -n "$A/x" "$A/y"
    equal "$(as alice cat "$A/y")" 1
}

@test "from table to table: EXDEV, so that mv copies" {
    as alice sh -c "echo moving >$A/x"
    fails_with EXDEV as alice probe rename "$A/x" "$B/x"
    fails_with EXDEV as alice probe link "$A/x" "$B/x"
    as alice mv "$A/x" "$B/x"
    equal "$(as alice cat "$B/x")" moving
    fails_with "$ENOENT" stat "$A/x"
}

@test "hard links share their contents, and live as long as the last" {
    as alice sh -c "echo one >$A/x; ln $A/x $A/y; mkdir $A/sub; ln $A/x $A/sub/z"
    equal "$(stat -c %h "$A/x")" 3
    as alice sh -c "echo two >>$A/y"
    equal "$(as alice cat "$A/sub/z" | paste -sd' ')" 'one two'
    as alice rm "$A/x" "$A/y"
    remount_store
    equal "$(as alice cat "$A/sub/z" | paste -sd' ')" 'one two'
    equal "$(stat -c %h "$A/sub/z")" 1
}

@test "an unlinked item stays readable for who has it open" {
    as alice sh -c "echo still here >$A/x"
    hold alice + "$A/x"
    as alice rm "$A/x"
    equal "$(ask read)" 'still here'
    equal "$(ask 'write STILL')" written
    equal "$(ask read)" 'STILL here'
    equal "$(ls -A "$A")" ''
}

@test "symlinks, FIFOs and sockets; no device nodes" {
    as alice ln -s x/../y "$A/link"
    equal "$(as alice readlink "$A/link")" x/../y
    as alice mkfifo "$A/fifo"
    equal "$(stat -c %F "$A/fifo")" fifo
    background as alice sh -c "echo through >$A/fifo"
    equal "$(as alice cat "$A/fifo")" through
    await
    fails_with "$EPERM" mknod "$A/null" c 1 3
    remount_store
    equal "$(stat -c %F "$A/link" "$A/fifo" | paste -sd,)" 'symbolic link,fifo'
    equal "$(as alice readlink "$A/link")" x/../y
    as alice rm "$A/link" "$A/fifo"
}

@test "modes, owners, times and their survival" {
    as alice sh -c "echo x >$A/x; chmod 640 $A/x; touch -d '2001-02-03 04:05:06.123456789 UTC' $A/x"
    chown :finance "$A/x"
    equal "$(TZ=UTC stat -c '%a %U %G %y' "$A/x")" '640 alice finance 2001-02-03 04:05:06.123456789 +0000'
    remount_store
    equal "$(TZ=UTC stat -c '%a %U %G %y' "$A/x")" '640 alice finance 2001-02-03 04:05:06.123456789 +0000'
    fails_with "$EPERM" as bob chmod 666 "$A/x"
    fails_with "$EPERM" as alice chown bob "$A/x"
    sleep 0.02
    as alice sh -c "echo y >>$A/x"
    [[ $(stat -c %Y "$A/x") -gt 1000000000 ]]
}

@test "new items get the umask, the folder's group, and the folder's default ACL" {
    as alice sh -c "umask 027; echo x >$A/x; mkdir $A/d"
    equal "$(stat -c '%a %G' "$A/x" "$A/d" | paste -sd,)" '640 finance,2750 finance'
    as alice setfacl -d -m u:dora:r "$A/d"
    as alice sh -c "umask 077; echo x >$A/d/x"
    getfacl -cp "$A/d/x" | grep -q '^user:dora:r'
    remount_store
    getfacl -cp "$A/d/x" | grep -q '^user:dora:r'
}

@test "extended attributes, sealed in the store" {
    as alice sh -c "echo x >$A/x; setfattr -n user.colour -v ultramarine $A/x; setfattr -n user.empty $A/x"
    equal "$(as alice getfattr --only-values -n user.colour "$A/x")" ultramarine
    equal "$(as alice getfattr "$A/x" 2>/dev/null | grep -cE '^user\.(colour|empty)$')" 2
    remount_store
    equal "$(as alice getfattr --only-values -n user.colour "$A/x")" ultramarine
    as alice setfattr -x user.colour "$A/x"
    fails_with 'No such attribute' as alice getfattr -n user.colour "$A/x"
    getfattr -Rdm - "$STORE/tables" 2>/dev/null | lacks ultramarine
    getfattr -Rdm - "$STORE/tables" 2>/dev/null | lacks colour
}

@test "mmap writes arrive" {
    as alice sh -c "head -c 10000 /dev/zero | tr '\\0' x >$A/x"
    as alice probe mmapwrite "$A/x" 'written through a mapping'
    equal "$(as alice head -c 25 "$A/x")" 'written through a mapping'
    remount_store
    equal "$(as alice head -c 25 "$A/x")" 'written through a mapping'
    equal "$(stat -c %s "$A/x")" 10000
}

@test "statfs, sync and flock" {
    [[ $(stat -f -c %b "$A") -gt 0 ]]
    as alice sh -c "echo x >$A/x"
    as alice sync "$A/x"
    sync -f "$A"
    as alice flock -n "$A/x" true
}

@test "a tree that is copied in and out is the same tree" {
    mkdir "$T/tree"
    cp -r "$ROOT/src" "$T/tree/"
    ln -s src/lib.rs "$T/tree/link"
    chmod -R a+rX "$T/tree"
    as alice cp -a "$T/tree" "$A/"
    as alice diff -r --no-dereference "$T/tree" "$A/tree"
    remount_store
    as alice diff -r --no-dereference "$T/tree" "$A/tree"
    as alice tar -C "$A" -cf "$KMSFS_TEST_DIR/home/alice/tree.tar" tree
    as alice tar -C "$B" -xf "$KMSFS_TEST_DIR/home/alice/tree.tar"
    as alice diff -r --no-dereference "$A/tree" "$B/tree"
    equal "$(as alice find "$A/tree" | wc -l)" "$(find "$T/tree" | wc -l)"
}

@test "what find and rm -r at the root of the mount do not enter: the control tree" {
    as alice sh -c "echo x >$A/x"
    find "$MNT" | lacks .kms
    rm -rf "${MNT:?}"/* 2>/dev/null || true
    jq -e .Statement "$MNT/.kms/keys/a/policy.json" >/dev/null
}
