#!/usr/bin/env bats
# .kms/why and `kmsfs why`: the reason, to whom it is due, and no more.

load common

setup() {
    new_paths
    start_store
    mount_store
    orders
    ITEM=$MNT/orders/1001.json WHY=$MNT/.kms/why/orders/1001.json
}

@test "allowed and denied, in the first line and in the exit code" {
    as alice head -n 1 "$WHY" | grep -q '^allowed: '
    as bob head -n 1 "$WHY" | grep -q '^denied: '
    head -n 1 "$WHY" | grep -q '^denied: '
    exits_with 0 as alice kmsfs why "$ITEM"
    exits_with 3 as bob kmsfs why "$ITEM"
    exits_with 3 kmsfs why "$ITEM"
    equal "$(as bob kmsfs --json why "$ITEM" | jq .Allowed)" false
    equal "$(as alice kmsfs --json why "$ITEM" | jq .Allowed)" true
}

@test "paths in every spelling" {
    exits_with 0 as alice sh -c "cd $MNT/orders && kmsfs why 1001.json"
    exits_with 0 as alice sh -c "cd $MNT/orders && kmsfs why ./1001.json"
    exits_with 0 as alice kmsfs why "$MNT/../$(basename "$MNT")/orders/1001.json"
    ln -s "$MNT" "$T/link"
    exits_with 0 as alice kmsfs why "$T/link/orders/1001.json"
    mkdir "$T/bind"
    mount --bind "$MNT/orders" "$T/bind"
    exits_with 0 as alice kmsfs why "$T/bind/1001.json"
    umount "$T/bind"
    exits_with 2 kmsfs why "$MNT"
    exits_with 2 kmsfs why "$MNT/.kms/whoami"
    exits_with 7 kmsfs why "$T/daemon.log"
}

@test "an administrator learns the Sid of the statement that decides, a stranger to the policy does not" {
    as alice cat "$WHY" | lacks 'Key administrators'
    policy_with orders '.Statement += [{"Sid": "Fired last week", "Effect": "Deny", "Principal": {"Unix": ["bob", "carol"]},
        "Action": "kms:Decrypt", "Resource": "*"}]' >"$T/p.json"
    kmsfs policy put orders "$T/p.json"
    as carol cat "$WHY" | grep -q 'Fired last week'
    as bob cat "$WHY" | grep -q '^denied: '
    as bob cat "$WHY" | lacks 'Fired last week'
}

@test "what Unix hides, why does not tell from what is not there" {
    answers() { # PATH
        as bob cat "$MNT/.kms/why/$1" 2>&1 | sed "s|$1|PATH|g" || true
        local code=0
        as bob kmsfs why "$MNT/$1" >/dev/null 2>&1 || code=$?
        echo "$code"
    }
    chmod 700 "$MNT/orders"
    equal "$(answers orders/1001.json)" "$(answers orders/no-such-item)"
    answers orders/1001.json | lacks 'denied:'
    as alice head -n 1 "$WHY" | grep -q '^allowed: '
    fails_with "$ENOENT" as bob cat "$MNT/.kms/why/no-such-table/x"
}

@test "the answer follows the policy, at once" {
    for _ in 1 2 3; do
        exits_with 3 as bob kmsfs why "$ITEM" >/dev/null
        kmsfs key add-user orders bob >/dev/null
        exits_with 0 as bob kmsfs why "$ITEM" >/dev/null
        kmsfs key remove-user orders bob >/dev/null
    done
}

@test "asking is not opening: no contents, and the same answer as open gives" {
    for user in alice bob carol root; do
        allowed=no
        as "$user" head -n 1 "$WHY" | grep -q '^allowed: ' && allowed=yes
        opened=no
        as "$user" cat "$ITEM" >/dev/null 2>&1 && opened=yes
        equal "$user $allowed" "$user $opened"
        as "$user" cat "$WHY" | lacks '12.50'
    done
}
