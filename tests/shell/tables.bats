#!/usr/bin/env bats
# A table that changes: its settings, its key, the key that its items are sealed under.

load common

setup() {
    new_paths
    start_store
    mount_store
    orders
    TABLE=$MNT/.kms/tables/orders
}

ITEM=orders/1001.json
CONTENT='{"order": 1001, "total": "12.50"}'

done_with() { # STATE...
    [[ " $* " == *" $(jq -r .State "$TABLE/re-encryption.json") "* ]]
}

# --- settings ---------------------------------------------------------------------------------------------------

@test "settings are set by the key's administrators, and by nobody else" {
    as carol bash -c 'echo "set cache=none on-revoke=tolerate" >"$MNT/.kms/tables/orders/ctl"'
    equal "$(jq -c .Settings "$TABLE/table.json")" '{"cache":"none","names":"open","on_revoke":"tolerate"}'
    equal "$(as carol cat "$TABLE/ctl.result")" 'done: the settings are in force'
    as carol kmsfs table set orders --cache shared --on-revoke expire
    equal "$(jq -c .Settings "$TABLE/table.json")" '{"cache":"shared","names":"open","on_revoke":"expire"}'
    for user in alice bob; do
        exits_with 3 as "$user" kmsfs table set orders --names sealed 2>/dev/null
        fails_with "$EACCES" as "$user" bash -c 'echo "set cache=none" >"$MNT/.kms/tables/orders/ctl"'
    done
    equal "$(jq -r .Settings.names "$TABLE/table.json")" open
    fails_with "$EINVAL" as root bash -c 'echo "set cache=some" >"$MNT/.kms/tables/orders/ctl"'
    [[ $(cat "$TABLE/ctl.result") == *'there are: cache=shared|none'* ]]
    exits_with 2 kmsfs table set orders 2>/dev/null
    remount_store
    equal "$(jq -c .Settings "$TABLE/table.json")" '{"cache":"shared","names":"open","on_revoke":"expire"}'
    kmsfs audit show | jq -es 'any(.eventName == "UpdateTable" and .userIdentity.userName == "carol" and
        .requestParameters.settings.cache == "none" and .resources[0].name == "orders")' >/dev/null
}

@test "settings of an unmounted store are its custodian's" {
    umount_store
    exits_with 2 kmsfs --at "$STORE" table set orders --cache none --key-file "$KEYFILE" 2>/dev/null
    kmsfs --at "$STORE" table set orders --cache none --key-file "$KEYFILE" --reason 'a database moves in'
    fails_with 'mount it' kmsfs --at "$STORE" table re-encrypt orders --key-file "$KEYFILE" --reason x
    mount_store
    equal "$(jq -r .Settings.cache "$TABLE/table.json")" none
}

@test "cache=none is in force when the command returns: what is open is opened again" {
    hold alice r "$MNT/$ITEM"
    equal "$(ask map)" "$CONTENT"
    equal "$(ask touch)" "$CONTENT"
    kmsfs table set orders --cache none
    equal "$(ask read)" ESTALE
    equal "$(ask touch)" SIGBUS
    equal "$(as alice cat "$MNT/$ITEM")" "$CONTENT"
    fails_with ENODEV as alice probe mmap shared "$MNT/$ITEM"
    equal "$(as alice probe mmap private "$MNT/$ITEM")" "$CONTENT"
    let_go
    kmsfs table set orders --cache shared
    equal "$(as alice probe mmap shared "$MNT/$ITEM")" "$CONTENT"
}

@test "sealed names: who may not decrypt learns nothing of what there is" {
    as alice mkdir "$MNT/orders/folder"
    as alice item orders/folder/x deep
    as bob stat "$MNT/$ITEM" "$MNT/orders/folder/x" >/dev/null
    as bob ls "$MNT/orders/folder" >/dev/null
    kmsfs table set orders --names sealed
    for name in "$ITEM" orders/none orders/folder orders/folder/x orders/folder/none; do
        fails_with "$EACCES" as bob stat "$MNT/$name"
    done
    fails_with "$EACCES" as bob ls "$MNT/orders"
    fails_with "$EACCES" as bob ls "$MNT/.kms/why/orders"
    for name in 1001.json none folder; do
        [[ $(as bob cat "$MNT/.kms/why/orders/$name") == denied* ]]
    done
    equal "$(as bob stat -c '%F %a' "$MNT/.kms/why/orders/folder")" 'regular file 444'
    fails_with "$EACCES" as bob bash -c 'echo x >"$MNT/orders/new"'
    equal "$(as alice ls "$MNT/orders" | tr '\n' ' ')" '1001.json folder '
    equal "$(as alice cat "$MNT/orders/folder/x")" deep
    fails_with "$ENOENT" as alice stat "$MNT/orders/none"
    # A name that alice has looked up is not bob's to have from the kernel's cache.
    fails_with "$EACCES" as bob stat "$MNT/orders/folder/x"
    kmsfs table set orders --names open
    as bob stat "$MNT/orders/folder/x" >/dev/null
}

# --- another key ------------------------------------------------------------------------------------------------

@test "a table moves to another key: its policy decides from then on, on open handles too" {
    kmsfs key create other --admin carol --user bob
    hold alice r "$MNT/$ITEM"
    equal "$(ask read)" "$CONTENT"
    before=$(sha256sum "$STORE"/tables/*/[!.]* | cut -d' ' -f1)
    as carol kmsfs table use-key orders other
    equal "$(jq -r .KeyName "$TABLE/table.json")" other
    equal "$(ask read)" EACCES
    fails_with "$EACCES" as alice cat "$MNT/$ITEM"
    equal "$(as bob cat "$MNT/$ITEM")" "$CONTENT"
    equal "$(sha256sum "$STORE"/tables/*/[!.]* | cut -d' ' -f1)" "$before"
    # What becomes of the old key is no business of the table's.
    kmsfs key remove-user orders alice
    let_go
    remount_store
    equal "$(as bob cat "$MNT/$ITEM")" "$CONTENT"
    kmsfs audit show | jq -es 'any(.eventName == "ReEncrypt" and .userIdentity.userName == "carol" and
        (.requestParameters | has("sourceKeyId") and has("destinationKeyId")))' >/dev/null
}

@test "a move takes the administrators of both keys" {
    kmsfs key create hers --admin dora --user dora
    kmsfs key create both --admin carol --admin dora --user bob
    exits_with 3 as dora kmsfs table use-key orders hers 2>/dev/null
    exits_with 3 as carol kmsfs table use-key orders hers 2>/dev/null
    exits_with 3 as alice kmsfs table use-key orders both 2>/dev/null
    exits_with 1 as carol kmsfs table use-key orders kmsfs-managed 2>/dev/null
    exits_with 7 as carol kmsfs table use-key orders nothing 2>/dev/null
    equal "$(jq -r .KeyName "$TABLE/table.json")" orders
    equal "$(as alice cat "$MNT/$ITEM")" "$CONTENT"
    as carol kmsfs table use-key orders both
    equal "$(as bob cat "$MNT/$ITEM")" "$CONTENT"
    fails_with "$EACCES" as alice cat "$MNT/$ITEM"
    # A table under the store's own key belongs to whom the store policy lets update tables.
    kmsfs table create plain --encryption owned --owner alice --mode 700
    as alice item plain/x plain
    exits_with 3 as carol kmsfs table use-key plain both 2>/dev/null
    kmsfs key create mine --admin root --user alice
    kmsfs table use-key plain mine
    equal "$(jq -r .Encryption "$MNT/.kms/tables/plain/table.json")" customer
    equal "$(as alice cat "$MNT/plain/x")" plain
    fails_with "$EACCES" cat "$MNT/plain/x"
}

@test "a table moves a hundred times, with a reader in it" {
    kmsfs key create other --admin root --user alice
    hold alice r "$MNT/$ITEM"
    for ((i = 0; i < 50; i++)); do
        echo 'use-key other' >"$TABLE/ctl"
        echo 'use-key orders' >"$TABLE/ctl"
    done
    equal "$(ask read)" "$CONTENT"
    remount_after() { let_go; remount_store; }
    remount_after
    equal "$(as alice cat "$MNT/$ITEM")" "$CONTENT"
}

# --- re-encryption ----------------------------------------------------------------------------------------------

@test "re-encryption: a new key for every item, and nothing else changes" {
    as alice bash -c 'cd "$MNT/orders" && mkdir -p a/b && head -c 3000000 /dev/zero >a/large && ln a/large a/b/link &&
        setfattr -n user.note -v hello a/large && setfattr -n user.note -v folder a/b && chmod 640 a/large &&
        ln -s target s && touch -d 2020-02-02 a/large && sync'
    describe() { (cd "$MNT/orders" && find . -printf '%p %i %m %n %s %T@ %l\n' | sort); }
    before=$(as alice describe)
    hold alice + "$MNT/orders/a/large"
    kmsfs table re-encrypt orders 2>"$T/bar"
    done_with 'done'
    equal "$(ask 'write hello')" written
    equal "$(ask read | head -c 5)" hello
    equal "$(jq -c .TableKeyVersions "$TABLE/re-encryption.json")" '[2]'
    equal "$(jq -c '[.Items, .ItemsDone, .Damaged]' "$TABLE/re-encryption.json")" '[4,4,0]'
    let_go
    as alice touch -d 2020-02-02 "$MNT/orders/a/large"
    equal "$(as alice describe)" "$before"
    equal "$(as alice getfattr --only-values -n user.note "$MNT/orders/a/large" 2>/dev/null)" hello
    equal "$(as alice getfattr --only-values -n user.note "$MNT/orders/a/b" 2>/dev/null)" folder
    equal "$(as alice cat "$MNT/$ITEM")" "$CONTENT"
    equal "$(jq -c '[.Tables[] | select(.Name == "orders").Items]' "$MNT/.kms/keys/orders/status.json")" \
        '[[{"Items":4,"TableKeyVersion":2}]]'
    remount_store
    equal "$(as alice readlink "$MNT/orders/s")" target
    equal "$(as alice head -c 5 "$MNT/orders/a/b/link")" hello
    # By whose order, and that it is done.
    equal "$(kmsfs audit show | jq -r 'select(.eventName == "ReEncrypt") | .requestParameters.reEncryption' | tr '\n' ' ')" \
        'ordered begun done '
    for user in alice bob; do exits_with 3 as "$user" kmsfs table re-encrypt orders 2>/dev/null; done
}

@test "Ctrl-C stops it, the same command goes on" {
    as alice bash -c 'for ((i = 0; i < 60; i++)); do head -c 2000000 /dev/zero >"$MNT/orders/item$i"; done'
    kmsfs table re-encrypt orders 2>"$T/bar" >"$T/said" 3>&- &
    wait_until 20 done_with running
    kill -INT $!
    status=0
    wait $! || status=$?
    equal "$status" 1
    done_with stopped
    grep -q 'goes on with it' "$T/bar"
    equal "$(jq -c .TableKeyVersions "$TABLE/re-encryption.json")" '[1,2]'
    kmsfs table re-encrypt orders --no-wait
    wait_until 60 done_with 'done'
    equal "$(jq -c .TableKeyVersions "$TABLE/re-encryption.json")" '[2]'
}

@test "a damaged item is left as it is and keeps the old key; removed, the same order is done" {
    as alice item orders/bad 'a text'
    ino=$(stat -c %i "$MNT/orders/bad")
    umount_store
    bad=$(find "$STORE/tables" -inum "$ino")
    printf '\xff' | dd of="$bad" bs=1 seek=560 conv=notrunc status=none
    cp "$bad" "$T/bad"
    mount_store
    expect_log 'tampering or damage'
    fails_with '1 items do not verify' kmsfs table re-encrypt orders
    done_with blocked
    equal "$(jq -c '[.TableKeyVersions, .Damaged]' "$TABLE/re-encryption.json")" '[[1,2],1]'
    cmp "$bad" "$T/bad"
    equal "$(as alice cat "$MNT/$ITEM")" "$CONTENT"
    as alice rm -f "$MNT/orders/bad"
    kmsfs table re-encrypt orders
    equal "$(jq -c .TableKeyVersions "$TABLE/re-encryption.json")" '[2]'
}

@test "a copy of an item from before comes too late" {
    umount_store
    cp -a "$STORE/tables" "$T/tables"
    mount_store
    kmsfs table re-encrypt orders
    umount_store
    rm -rf "$STORE/tables"
    cp -a "$T/tables" "$STORE/tables"
    mount_store
    expect_log 'tampering or damage'
    fails_with 'Required key not available' as alice cat "$MNT/$ITEM"
}

@test "versions of a key's material that are in use stay" {
    fails_with 'one version of its material' kmsfs key retire-versions orders --confirm orders
    exits_with 3 as alice kmsfs key retire-versions orders 2>/dev/null
    equal "$(jq -c '.MaterialVersions[] | [.Version, .Current, .Needed]' "$MNT/.kms/keys/orders/status.json")" '[1,true,true]'
    as alice kmsfs key status orders | jq -e '.MaterialVersions[0].TableKeys[0].Table == "orders"' >/dev/null
    fails_with "$EACCES" as bob cat "$MNT/.kms/keys/orders/status.json"
}

@test "a full store holds re-encryption up, and costs nothing" {
    umount_store
    mkdir "$T/small"
    mount -t tmpfs -o size=24m none "$T/small"
    cp -a "$STORE" "$T/small/store"
    mkdir "$T/small-mnt"
    bounded 30 kmsfs mount "$T/small/store" "$T/small-mnt" --key-file "$KEYFILE" --log-file "$T/small.log" --anchor "$T/anchor-small" 3>&-
    MNT=$T/small-mnt as alice bash -c 'head -c 9000000 /dev/urandom >"$MNT/orders/large"; sync "$MNT/orders/large"'
    sum=$(as alice sha256sum "$T/small-mnt/orders/large")
    # Room for the order, and not for much more.
    head -c 30000000 /dev/zero >"$T/small/ballast" 2>/dev/null || true
    truncate -s -1M "$T/small/ballast"
    kmsfs --at "$T/small-mnt" table re-encrypt orders --no-wait
    progress() { jq -r .State "$T/small-mnt/.kms/tables/orders/re-encryption.json"; }
    waits() { [[ $(progress) == waiting ]]; }
    is_done() { [[ $(progress) == 'done' ]]; }
    wait_until 60 waits
    [[ $(jq -r .Reason "$T/small-mnt/.kms/tables/orders/re-encryption.json") == *'No space left'* ]]
    equal "$(as alice sha256sum "$T/small-mnt/orders/large")" "$sum"
    rm "$T/small/ballast"
    kmsfs --at "$T/small-mnt" table re-encrypt orders --no-wait
    wait_until 60 is_done
    equal "$(as alice sha256sum "$T/small-mnt/orders/large")" "$sum"
    kmsfs umount "$T/small-mnt"
    umount "$T/small"
    mount_store
}

@test "rotated, re-encrypted, retired: the old material is gone, and the items are read" {
    kmsfs key rotate orders
    fails_with 'for orders' kmsfs key retire-versions orders --confirm orders
    kmsfs table re-encrypt orders
    fails_with 'retire-versions orders' kmsfs key retire-versions orders
    equal "$(jq -c '[.MaterialVersions[] | [.Version, .Needed]]' "$MNT/.kms/keys/orders/status.json")" '[[1,false],[2,true]]'
    kmsfs key retire-versions orders --confirm orders
    equal "$(jq -c '[.MaterialVersions[].Version]' "$MNT/.kms/keys/orders/status.json")" '[2]'
    remount_store
    equal "$(as alice cat "$MNT/$ITEM")" "$CONTENT"
}

@test "a table that has moved goes on when its old key is disabled; a disabled key holds work up" {
    kmsfs key create other --admin root --user alice
    kmsfs table use-key orders other
    kmsfs key disable orders
    equal "$(as alice cat "$MNT/$ITEM")" "$CONTENT"
    fails_with '' kmsfs table use-key orders orders
    kmsfs key disable other
    fails_with '' kmsfs table re-encrypt orders
    kmsfs key enable other
    kmsfs table re-encrypt orders
    equal "$(as alice cat "$MNT/$ITEM")" "$CONTENT"
}
