#!/usr/bin/env bats
# The trail: what stands in it, who may read it, and that what is cut, changed or reordered is found.

load common

setup() {
    new_paths
    start_store
    mount_store
    orders
}

# The number of events that a jq condition holds for.
events() { kmsfs audit show | jq -s "map(select($1)) | length"; }

@test "decrypting opens and denials are there, with who and what" {
    as alice cat "$MNT/orders/1001.json" >/dev/null
    fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
    [[ $(events '.eventName == "Decrypt" and .userIdentity.uid == 61001 and (.errorCode | not)
        and .requestParameters.encryptionContext["kmsfs:table"] == "orders"
        and .requestParameters.encryptionContext["kmsfs:item"] == "1001.json"') -ge 1 ]]
    [[ $(events '.eventName == "Decrypt" and .userIdentity.uid == 61002 and .errorCode
        and .requestParameters.encryptionContext["kmsfs:item"] == "1001.json"') -ge 1 ]]
    [[ $(kmsfs audit show --denied --user bob --resource orders/1001.json | wc -l) -ge 1 ]]
    kmsfs audit show --denied | jq -r .userIdentity.uid | lacks 61001
}

@test "management calls are there: keys, tables, policies, mounts" {
    kmsfs key add-user orders bob
    exits_with 3 as bob kmsfs key remove-user orders alice
    remount_store
    for name in CreateKey CreateTable PutKeyPolicy; do
        [[ $(kmsfs audit show --event "$name" | wc -l) -ge 1 ]] || { echo "no $name"; return 1; }
    done
    [[ $(kmsfs audit show --event PutKeyPolicy --denied --user bob | wc -l) -ge 1 ]]
    [[ $(kmsfs audit show | jq -r .eventName | grep -ci mount) -ge 2 ]]
}

@test "every event is one line of JSON with CloudTrail's names and a time that does not go back" {
    as alice cat "$MNT/orders/1001.json" >/dev/null
    kmsfs audit show >"$T/trail"
    jq -es 'all(.[]; .eventSource == "kmsfs" and (.eventName | type == "string") and (.userIdentity.uid | type == "number")
        and (.eventTime | test("^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z$")))' "$T/trail" >/dev/null
    equal "$(jq -r .eventTime "$T/trail" | sort -c 2>&1)" ''
    lacks '12.50' <"$T/trail"
}

@test "who is not let by the store's policy reads nothing of it" {
    for user in alice bob dora; do
        fails_with "$EACCES" as "$user" cat "$MNT/.kms/audit/trail.jsonl"
        exits_with 3 as "$user" kmsfs audit show
    done
    kmsfs policy get --store | jq '.Statement += [{"Sid": "Auditors", "Effect": "Allow", "Principal": {"Unix": ["dora"]},
        "Action": "kmsfs:ReadAudit", "Resource": "*"}]' | kmsfs policy put --store -
    as dora kmsfs audit show | grep -q CreateKey
    as dora kmsfs audit verify
    # An auditor is no key user.
    fails_with "$EACCES" as dora cat "$MNT/orders/1001.json"
}

@test "a trail as it was written verifies, mounted and unmounted, also after a kill" {
    kmsfs audit verify
    umount_store
    kmsfs --at "$STORE" audit verify --key-file "$KEYFILE"
    mount_store
    fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
    kill_daemon
    umount "$MNT"
    kmsfs --at "$STORE" audit verify --key-file "$KEYFILE"
    mount_store
    expect_unclean_stop
    [[ $(kmsfs audit show --denied --user bob | wc -l) -ge 1 ]]
}

@test "a flipped bit, a cut and a swap of segments are found: code 6" {
    for i in $(seq 20); do fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"; done
    remount_store
    umount_store
    segment=$(find "$STORE/audit" -type f -size +0 | sort | head -n1)
    size=$(stat -c %s "$segment")
    cp -a "$STORE/audit" "$T/audit"
    verify() { kmsfs --at "$STORE" audit verify --key-file "$KEYFILE"; }
    restore() { rm -rf "$STORE/audit" && cp -a "$T/audit" "$STORE/audit"; }
    verify
    for offset in 20 $((size / 3)) $((size / 2)) $((size - 1)); do
        byte=$(od -An -tu1 -j "$offset" -N 1 "$segment")
        printf "\\x$(printf %02x $((byte ^ 4)))" | dd of="$segment" bs=1 seek="$offset" conv=notrunc status=none
        exits_with 6 verify
        restore
    done
    for cut in $((size / 2)) $((size - 1)) 0; do
        truncate -s "$cut" "$segment"
        exits_with 6 verify
        restore
    done
    rm "$segment"
    exits_with 6 verify
    restore
    verify
}

@test "events stand there before the answer is given" {
    fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
    kill_daemon
    umount "$MNT"
    [[ $(kmsfs --at "$STORE" audit show --denied --user bob --key-file "$KEYFILE" | wc -l) -ge 1 ]]
}
