#!/usr/bin/env bats
# Hard links, FIFOs and sockets as items: between processes, after a remount, and what a store writer can make of them.

load common
load attacks

# One store for the attacks; the other tests start from a copy of it, too.
setup_file() {
    common_setup_file
    new_paths
    start_store
    mount_store
    kmsfs table create orders --user alice --owner alice --group finance --mode 2770
    as alice fill_table
    umount_store
    mv "$T" "$BATS_FILE_TMPDIR/pristine"
}

fill_table() {
    set -eu
    umask 007
    cd "$MNT/orders"
    echo first >one
    ln one link
    mkdir sub
    ln one sub/link
    echo second >two
    echo other >sub/other
    mkfifo fifo1 fifo2
    mkdir sockets
    probe bind sockets/1
    probe bind sockets/2
}

setup() {
    new_paths
    pristine
    mount_store
    O=$MNT/orders
}

# The backing file of an item. Numbers of files are those of the store's.
backing_of() { # PATH-IN-TABLE
    local found
    mapfile -t found < <(find "$STORE/tables" -inum "$(stat -c %i "$O/$1")")
    ((${#found[@]} == 1)) || { echo "$1 has ${#found[@]} names in the store" >&2; return 1; }
    echo "${found[0]}"
}

# As `assert_noticed`, of names in the table that must neither be read nor make anybody wait.
noticed() { # PATH-IN-TABLE...
    expect_log 'tampering or damage'
    mount_store
    assert_noticed "${@/#/orders/}"
    local path
    for path in "$@"; do
        fails_with "$EBADMSG" as alice bash -c 'echo "for whoever listens" >"$1"' w "$O/$path"
        # Whoever may not use the key is told that, and nothing of damage.
        fails_with "$EACCES" as bob timeout 10 cat "$O/$path"
    done
    equal "$(as alice cat "$O/sub/other")" other
    assert_event
}

# --- as they should be ---------------------------------------------------------------------------------------------

@test "a FIFO is one pipe under all its names, for many processes, also after a remount" {
    as alice ln "$O/fifo1" "$O/sub/fifo"
    for _ in 1 2; do
        for n in 1 2 3; do
            background as alice bash -c 'for ((i = 0; i < 100; i++)); do echo "$2 $i"; done >"$1"' w "$O/fifo1" "$n"
        done
        # The reader that opens first lets all three in.
        as alice bash -c 'exec 3<>"$1/fifo1"; for ((i = 0; i < 300; i++)); do read -r -t 60 -u 3 line || exit; echo "$line"; done' \
            r "$O/sub/.." >"$T/read"
        await
        equal "$(sort -u "$T/read" | wc -l)" 300
        background as alice sh -c "echo by another name >$O/fifo1"
        equal "$(as alice timeout 60 cat "$O/sub/fifo")" 'by another name'
        await
        remount_store
        equal "$(stat -c '%F %h' "$O/fifo1" "$O/sub/fifo" | paste -sd,)" 'fifo 2,fifo 2'
    done
    # Unix alone decides who uses it, and GenerateDataKey who makes it.
    background as bob sh -c "echo from bob >$O/fifo2"
    equal "$(as alice timeout 60 cat "$O/fifo2")" 'from bob'
    await
    fails_with "$EACCES" as bob mkfifo "$O/fifo3"
    fails_with "$EACCES" as dora cat "$O/fifo1"
    as alice mv "$O/fifo1" "$O/sub/moved"
    as alice rm "$O/sub/fifo"
    remount_store
    equal "$(stat -c '%F %h' "$O/sub/moved")" 'fifo 1'
}

@test "a socket connects processes; after a remount nobody answers, and its name can be used again" {
    background as alice probe answer "$O/socket" 'an answer'
    wait_until 20 test -S "$O/socket"
    wait_until 20 as alice probe call "$O/socket" >"$T/said"
    await
    background as alice probe answer "$O/sub/socket" 'another answer'
    wait_until 20 test -S "$O/sub/socket"
    as alice ln "$O/sub/socket" "$O/linked"
    wait_until 20 as alice sh -c "probe call $O/linked >$KMSFS_TEST_DIR/home/alice/said"
    equal "$(cat "$KMSFS_TEST_DIR/home/alice/said")" 'another answer'
    await
    remount_store
    equal "$(stat -c '%F %h' "$O/socket" "$O/linked" | paste -sd,)" 'socket 1,socket 2'
    fails_with ECONNREFUSED as alice probe call "$O/socket"
    fails_with EADDRINUSE as alice probe bind "$O/socket"
    as alice rm "$O/socket"
    as alice probe bind "$O/socket"
    fails_with EACCES as bob probe bind "$O/bob's"
}

@test "a hard link is the same item to all processes, under every name, also after a remount" {
    equal "$(stat -c %h "$O/one")" 3
    equal "$(stat -c %i "$O/link" "$O/sub/link" | sort -u)" "$(stat -c %i "$O/one")"
    hold alice + "$O/sub/link"
    as alice sh -c "echo more >>$O/one"
    equal "$(ask read)" first
    equal "$(ask 'write FIRST')" written
    equal "$(as alice cat "$O/link" | paste -sd' ')" 'FIRST more'
    # flock(2) through one name keeps out who comes by another.
    as alice flock -n "$O/one" bash -c '! flock -n "$1" true' f "$O/link"
    as alice rm "$O/one"
    let_go
    remount_store
    equal "$(as alice cat "$O/sub/link" | paste -sd' ')" 'FIRST more'
    equal "$(stat -c %h "$O/link")" 2
    # As many names as there may be, and no more.
    for n in 3 4 5 6 7 8 9; do as alice ln "$O/link" "$O/name$n"; done
    fails_with 'Too many links' as alice ln "$O/link" "$O/name10"
    as alice mv "$O/name9" "$O/sub/name9"
    remount_store
    equal "$(as alice cat "$O/sub/name9" | paste -sd' ')" 'FIRST more'
    equal "$(stat -c %h "$O/link")" 9
}

# --- names that change places in the store ---------------------------------------------------------------------------

@test "two FIFOs change names" {
    one=$(backing_of fifo1) two=$(backing_of fifo2)
    umount_store
    exchange_files "$one" "$two"
    noticed fifo1 fifo2
}

@test "two sockets change names" {
    one=$(backing_of sockets/1) two=$(backing_of sockets/2)
    umount_store
    exchange_files "$one" "$two"
    noticed sockets/1 sockets/2
}

@test "a FIFO and an item change names: nobody writes into the pipe what was for the item" {
    one=$(backing_of fifo1) two=$(backing_of two)
    umount_store
    exchange_files "$one" "$two"
    noticed fifo1 two
}

@test "an item is made to look like a FIFO: nobody writes into a pipe that others may read" {
    two=$(backing_of two)
    umount_store
    printf '\3' | dd of="$two" bs=1 seek=11 conv=notrunc status=none
    chmod +t "$two"
    noticed two
}

@test "a FIFO takes the place of an item, under its header's own name too" {
    # What bob could read from: a FIFO that alice made, put where she writes.
    one=$(backing_of fifo1) two=$(backing_of two)
    umount_store
    rm "$two"
    ln "$one" "$two"
    expect_log 'tampering or damage'
    # Under its own name it is what it was, whichever is met first.
    for met_first in fifo1 two; do
        mount_store
        stat "$O/$met_first" >/dev/null
        fails_with "$EBADMSG" as alice bash -c 'echo secret >"$1"' w "$O/two"
        background as alice sh -c "echo through >$O/fifo1"
        equal "$(as alice timeout 60 cat "$O/fifo1")" through
        await
        umount_store
    done
}

@test "a FIFO loses the mark of its kind, or its header a bit" {
    one=$(backing_of fifo1) two=$(backing_of fifo2)
    umount_store
    chmod -t "$one"
    flip "$two" 400
    noticed fifo1 fifo2
}

@test "one of an item's names changes places with another item" {
    mapfile -t names < <(find "$STORE/tables" -inum "$(stat -c %i "$O/one")" -printf '%d %p\n' | sort -n | cut -d' ' -f2-)
    two=$(backing_of two)
    equal "${#names[@]}" 3
    umount_store
    # One of those in the table's own folder: `one` or `link`.
    exchange_files "${names[0]}" "$two"
    expect_log 'tampering or damage'
    mount_store
    as alice outcomes orders/one orders/link orders/two orders/sub/link >"$T/outcomes"
    equal "$(sort "$T/outcomes" | uniq -c | awk '{ print $1, $2 }' | paste -sd,)" '2 Bad,2 ok'
    equal "$(sed -n '3p;4p' "$T/outcomes" | paste -sd,)" "$EBADMSG,ok"
    assert_event
}

@test "an item takes the name of another as one more of its own" {
    one=$(find "$STORE/tables" -inum "$(stat -c %i "$O/one")" -print -quit) two=$(backing_of two)
    umount_store
    rm "$two"
    ln "$one" "$two"
    expect_log 'tampering or damage'
    mount_store
    # In either order: an item that is open already is no proof of another name.
    equal "$(as alice cat "$O/one" "$O/link" "$O/sub/link" | sort -u)" first
    as alice outcomes orders/two >"$T/outcomes"
    equal "$(cat "$T/outcomes")" "$EBADMSG"
    assert_event
}
