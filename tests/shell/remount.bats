#!/usr/bin/env bats
# What a mount leaves behind for the next one: after unmounting, after a kill, read-only, elsewhere.

load common

setup() {
    new_paths
    start_store
    mount_store
    orders
}

@test "items, folders, policies and keys are there again" {
    as alice mkdir "$MNT/orders/2026"
    as alice item orders/2026/x deep
    kmsfs key add-user orders bob
    id=$(jq -r .KeyId "$MNT/.kms/keys/orders/key.json")
    for _ in 1 2 3; do remount_store; done
    equal "$(as alice cat "$MNT/orders/2026/x")" deep
    equal "$(as bob cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    fails_with "$EACCES" cat "$MNT/orders/1001.json"
    equal "$(jq -r .KeyId "$MNT/.kms/keys/orders/key.json")" "$id"
}

@test "a copy of the store, made with cp -a, mounts elsewhere" {
    umount_store
    cp -a "$STORE" "$T/copy"
    mkdir "$T/elsewhere" "$T/anchor2"
    bounded 30 kmsfs mount "$T/copy" "$T/elsewhere" --key-file "$KEYFILE" --log-file "$T/copy.log" --anchor "$T/anchor2" 3>&-
    equal "$(as alice cat "$T/elsewhere/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    fails_with "$EACCES" as bob cat "$T/elsewhere/orders/1001.json"
    kmsfs umount "$T/elsewhere"
}

@test "read-only: everything is read, nothing is written, no byte of the store changes" {
    umount_store
    find "$STORE" -type f ! -name lock -exec sha256sum {} + | sort >"$T/sums"
    mount_store --read-only
    equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    fails_with "$EROFS" as alice touch "$MNT/orders/x"
    fails_with "$EROFS" as alice rm -f "$MNT/orders/1001.json"
    fails_with '' kmsfs key add-user orders bob
    umount_store
    find "$STORE/tables" "$STORE/records" -type f -exec sha256sum {} + | sort >"$T/after"
    grep -E " $STORE/(tables|records)/" "$T/sums" | cmp - "$T/after"
}

@test "after a kill, what fsync has acknowledged is there" {
    background as alice probe append "$MNT/orders/log" 100000 >"$T/acknowledged"
    wait_until 20 test -s "$T/acknowledged"
    sleep 0.5
    kill_daemon
    await || true
    umount "$MNT"
    acknowledged=$(grep -cE '^[0-9]+$' "$T/acknowledged")
    ((acknowledged > 0))
    mount_store
    expect_unclean_stop
    as alice cat "$MNT/orders/log" >"$T/found"
    # Line by line what was written, at least up to the last that fsync acknowledged.
    [[ $(wc -l <"$T/found") -ge $acknowledged ]]
    seq 0 "$(($(wc -l <"$T/found") - 1))" | sed 's/^/line /' | cmp - <(head -n "$(wc -l <"$T/found")" "$T/found")
    equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
}

@test "a kill in the middle of many writes, twenty times: each item is as before or as after" {
    expect_unclean_stop
    as alice bash -c 'for ((i = 0; i < 50; i++)); do head -c 6000 /dev/zero | tr "\0" a >"$1/item-$i"; done; sync' w "$MNT/orders"
    for round in $(seq 20); do
        background as alice bash -c 'while :; do
            for c in b c d; do
                for ((i = 0; i < 50; i++)); do
                    head -c 6000 /dev/zero | tr "\0" $c | dd of="$1/item-$i" bs=6000 conv=notrunc,fsync status=none || exit
                done
            done
        done' w "$MNT/orders" 2>/dev/null
        sleep "0.$((RANDOM % 5 + 1))"
        kill_daemon
        await || true
        umount "$MNT"
        mount_store
        for ((i = 0; i < 50; i++)); do
            letters=$(as alice sh -c "fold -w1 $MNT/orders/item-$i | sort | uniq -c") || { echo "round $round, item $i"; return 1; }
            equal "$(stat -c %s "$MNT/orders/item-$i")" 6000
            [[ $letters =~ ^\ *6000\ [abcd]$ ]] || { echo "round $round, item $i: $letters"; return 1; }
        done
    done
}

@test "a policy save that was answered survives a kill at once" {
    for user in bob dora erin; do
        kmsfs key add-user orders "$user" 2>/dev/null
        kill_daemon
        mount_store
        jq -e --arg user "$user" '.Statement[] | select(.Sid == "Key users") | .Principal.Unix | index($user)' \
            "$MNT/.kms/keys/orders/policy.json" >/dev/null
    done
    expect_unclean_stop
}
