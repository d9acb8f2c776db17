#!/usr/bin/env bats
# Who administers what: keys and the store have administrators who need not be root, and who read nothing by that.

load common

# Lets somebody do something with the store.
store_allows() { # USER ACTION-AS-JSON
    kmsfs policy get --store |
        jq --arg user "$1" --argjson action "$2" '.Statement += [{"Effect": "Allow", "Principal": {"Unix": [$user]},
            "Action": $action, "Resource": "*"}]' |
        kmsfs policy put --store -
}

@test "a key administrator who is not root edits the policy, and root, who is none, does not" {
    kmsfs key create orders --admin carol --user alice
    kmsfs policy get orders && return 1
    as carol kmsfs key add-user orders bob
    as carol kmsfs policy get orders | jq -e '[.Statement[] | select(.Sid == "Key users") | .Principal.Unix[]] == ["alice", "bob"]'
    exits_with 3 kmsfs key add-user orders root
    exits_with 3 kmsfs key describe orders
    exits_with 3 sh -c 'echo "{}" | kmsfs policy put orders -'
    fails_with "$EACCES" sh -c "echo '{}' >$MNT/.kms/keys/orders/policy.json"
    # Those who use it do not administer it.
    exits_with 3 as alice kmsfs key add-user orders dora
    exits_with 3 as alice kmsfs policy get orders
}

@test "an administrator without Decrypt reads nothing, by whatever way" {
    orders
    for user in carol root; do
        fails_with "$EACCES" as "$user" cat "$MNT/orders/1001.json"
        fails_with "$EACCES" as "$user" cp "$MNT/orders/1001.json" "$T/copy"
        exits_with 3 as "$user" kmsfs why "$MNT/orders/1001.json"
        as "$user" ls "$MNT/orders" >/dev/null
        exits_with 3 as "$user" kmsfs encrypt orders </dev/null
    done
    as alice sh -c "kmsfs encrypt orders <$MNT/orders/1001.json" >"$T/c"
    exits_with 3 as carol kmsfs decrypt - <"$T/c"
}

@test "an administrator who gives himself the right reads, and that is one event" {
    orders
    exits_with 3 as carol kmsfs why "$MNT/orders/1001.json"
    before=$(kmsfs audit show --event PutKeyPolicy | wc -l)
    as carol kmsfs key add-user orders carol
    equal "$(as carol cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    equal "$(kmsfs audit show --event PutKeyPolicy | wc -l)" $((before + 1))
    kmsfs audit show --event PutKeyPolicy --last 1 |
        jq -e '.userIdentity.uid == 61003 and .userIdentity.executable and (.errorCode | not)
            and .resources[0].name == "orders"'
    [[ $(kmsfs audit show --event Decrypt --user carol --resource orders/1001.json | jq -s 'map(select(.errorCode | not)) | length') -ge 1 ]]
}

@test "an administrator cannot shut himself out, and can hand over" {
    kmsfs key create orders --admin carol
    as carol kmsfs policy get orders >"$T/p.json"
    jq '.Statement[0].Principal.Unix = ["dora"]' "$T/p.json" >"$T/q.json"
    as carol kmsfs policy put orders - <"$T/q.json" && return 1
    jq '.Statement[0].Principal.Unix = ["carol", "dora"]' "$T/p.json" >"$T/q.json"
    as carol kmsfs policy put orders - <"$T/q.json"
    as dora kmsfs policy put orders - <<<"$(jq '.Statement[0].Principal.Unix = ["dora"]' "$T/p.json")"
    exits_with 3 as carol kmsfs policy get orders
    as dora kmsfs key add-user orders dora
}

@test "who makes keys is the store policy's to say" {
    exits_with 3 as carol kmsfs key create hers
    fails_with "$EACCES" as carol mkdir "$MNT/.kms/keys/hers"
    store_allows carol '"kms:CreateKey"'
    as carol kmsfs key create hers
    as carol mkdir "$MNT/.kms/keys/hers2"
    as carol kmsfs policy get hers2 | jq -e '.Statement[0].Principal.Unix == ["carol"] and .Statement[1].Principal.Unix == []'
    # That is all that it says.
    exits_with 3 as carol kmsfs table create hers --key hers
    exits_with 3 as carol kmsfs policy get --store
    exits_with 3 as carol kmsfs audit show
    [[ $(kmsfs audit show --event CreateKey --user carol --denied | wc -l) -ge 1 ]]
    [[ $(kmsfs audit show --event CreateKey --user carol | jq -s 'map(select(.errorCode | not)) | length') == 2 ]]
}

@test "who makes tables is the store policy's to say, and under a key that exists its administrators'" {
    kmsfs key create orders --admin root
    store_allows carol '["kmsfs:CreateTable"]'
    # A new key for it is another right.
    exits_with 3 as carol kmsfs table create hers
    exits_with 3 as carol kmsfs table create hers --key orders
    equal "$(ls "$MNT")" ''
    kmsfs policy get orders | jq '.Statement[0].Principal.Unix += ["carol"]' | kmsfs policy put orders -
    as carol kmsfs table create hers --key orders
    store_allows carol '["kms:CreateKey"]'
    as carol kmsfs table create more
    equal "$(ls "$MNT" | paste -sd ' ')" 'hers more'
    for name in CreateKey PutKeyPolicy; do
        [[ $(kmsfs audit show --event "$name" --user carol --denied | wc -l) -ge 1 ]]
    done
    [[ $(kmsfs audit show --event CreateTable --user carol | jq -s 'map(select(.errorCode | not)) | length') == 2 ]]
}

@test "the store has administrators who are not root, and one of them can take root's place" {
    kmsfs policy get --store | jq '.Statement[0].Principal.Unix += ["carol"]' | kmsfs policy put --store -
    as carol kmsfs policy get --store | jq '.Statement[0].Principal.Unix = ["carol"]' | as carol kmsfs policy put --store -
    exits_with 3 kmsfs policy get --store
    exits_with 3 kmsfs key create roots
    exits_with 3 kmsfs audit show
    as carol kmsfs key create hers
    as carol kmsfs audit show --event PutStorePolicy | jq -se 'length >= 2 and all(.[]; .userIdentity.uid)'
    # She administers the store, and has no key by that.
    exits_with 3 as carol kmsfs encrypt hers </dev/null
}

@test "a policy that delegates to the account makes the store's administrators the key's, and no users" {
    kmsfs key create orders --admin root
    cat >"$T/p.json" <<'JSON'
{"Version": "2012-10-17", "Statement": [{"Sid": "Enable IAM User Permissions", "Effect": "Allow",
  "Principal": {"AWS": "arn:aws:iam::111122223333:root"}, "Action": "kms:*", "Resource": "*"}]}
JSON
    kmsfs policy put orders "$T/p.json"
    kmsfs policy get --store | jq '.Statement[0].Principal.Unix += ["carol"]' | kmsfs policy put --store -
    as carol kmsfs policy get orders >/dev/null
    exits_with 3 as carol kmsfs encrypt orders </dev/null
    exits_with 3 as alice kmsfs policy get orders
    store_allows alice '["kms:Encrypt", "kms:Decrypt"]'
    as alice sh -c 'echo x | kmsfs encrypt orders | kmsfs decrypt'
}

@test "when the last administrator is gone, the custodian of the store mends it, with his reason" {
    kmsfs key create orders --admin erin
    userdel erin 2>/dev/null || sed -i '/^erin:/d' /etc/passwd
    umount_store
    exits_with 2 kmsfs --at "$STORE" policy get orders --key-file "$KEYFILE" --no-such-option
    kmsfs --at "$STORE" policy get orders --key-file "$KEYFILE" |
        jq '.Statement[0].Principal.Unix = ["carol"]' >"$T/p.json"
    exits_with 2 kmsfs --at "$STORE" policy put orders "$T/p.json" --key-file "$KEYFILE"
    kmsfs --at "$STORE" policy put orders "$T/p.json" --key-file "$KEYFILE" --reason 'erin has left'
    mount_store
    as carol kmsfs policy get orders >/dev/null
    kmsfs audit show --event PutKeyPolicy --last 1 |
        jq -e '.userIdentity.type == "Custodian" and .requestParameters.reason == "erin has left"'
}
