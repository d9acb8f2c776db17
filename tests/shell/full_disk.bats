#!/usr/bin/env bats
# A full disk below the store: a right can be taken, what was there stays, and everything goes on once there is space.

load common

setup() {
    new_paths
    # Its mount goes with the namespace of these tests.
    DISK=$(mktemp -d "$KMSFS_TEST_DIR/disk.XXXXXX")
    mount -t tmpfs -o size=24m tmpfs "$DISK"
    STORE=$DISK/store
    start_store
    mount_store
    orders
}

# Fills the store's disk through the mount, as alice, until nothing fits any more.
fill() {
    as alice dd if=/dev/zero of="$MNT/orders/filler" bs=64K status=none 2>"$T/filled" && return 1
    grep -q 'No space left on device' "$T/filled"
    local number
    for ((number = 0; number < 2000; number++)); do
        as alice item "orders/small.$number" filler 2>/dev/null || return 0
    done
    return 1
}

@test "with a full disk a right is taken, and the open file with it; a new right waits for nothing either" {
    expect_log 'No space left on device|disk is full|no space is kept'
    kmsfs key add-user orders bob
    hold bob r "$MNT/orders/1001.json"
    fill
    kmsfs key remove-user orders bob
    fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
    [[ $(ask read) =~ ^(EACCES|ESTALE)$ ]]
    let_go
    kmsfs key add-user orders dora
    remount_store
    fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
    as alice cat "$MNT/orders/1001.json" | grep -q '"order": 1001'
}

@test "with a full disk nothing old is lost, items can be removed, and then everything goes on" {
    expect_log 'No space left on device|disk is full|no space is kept'
    dd if=/dev/urandom of="$T/reference" bs=4096 count=300 status=none
    as alice cp "$T/reference" "$MNT/orders/reference"
    fill
    # An overwrite in the middle may fail, and takes nothing away.
    as alice dd if=/dev/zero of="$MNT/orders/1001.json" conv=notrunc bs=1 count=1 status=none || true
    as alice cmp "$T/reference" "$MNT/orders/reference"
    as alice rm "$MNT/orders/filler"
    as alice rm -f "$MNT"/orders/small.*
    as alice item orders/after '{"order": 1002}'
    remount_store
    as alice cmp "$T/reference" "$MNT/orders/reference"
    as alice cat "$MNT/orders/after" | grep -q 1002
    kmsfs audit verify
}
