#!/usr/bin/env bats
# The three kinds of encryption, as DynamoDB has them.

load common

@test "owned: Unix alone decides, and no key is listed" {
    kmsfs table create open --encryption owned --owner alice --group finance --mode 2770
    equal "$(jq -r .Encryption "$MNT/.kms/tables/open/table.json")" owned
    as alice item open/x 'for the group'
    equal "$(as bob cat "$MNT/open/x")" 'for the group'
    equal "$(cat "$MNT/open/x")" 'for the group'
    fails_with "$EACCES" as dora cat "$MNT/open/x"
    kmsfs key list | lacks open
    equal "$(ls "$MNT/.kms/keys" | grep -vx kmsfs-managed || true)" ''
}

@test "owned is encrypted all the same" {
    kmsfs table create open --encryption owned
    echo 'a text that must not be found' >"$MNT/open/x"
    umount_store
    not grep -rqa 'must not be found' "$STORE"
}

@test "managed: one key for all such tables, listed, its policy readable and fixed, its use in the trail" {
    kmsfs table create one --encryption managed --owner alice --group finance --mode 2770
    kmsfs table create two --encryption managed
    equal "$(jq -r .KeyName "$MNT/.kms/tables/one/table.json")" kmsfs-managed
    equal "$(jq -r .KeyId "$MNT/.kms/tables/one/table.json")" "$(jq -r .KeyId "$MNT/.kms/tables/two/table.json")"
    kmsfs key list | grep -q kmsfs-managed
    kmsfs policy get kmsfs-managed >"$T/managed.json"
    jq -e .Statement "$T/managed.json" >/dev/null
    as alice item one/x managed
    equal "$(as bob cat "$MNT/one/x")" managed
    fails_with "$EACCES" as dora cat "$MNT/one/x"
    exits_with 3 kmsfs policy put kmsfs-managed "$T/managed.json"
    fails_with '' cp "$T/managed.json" "$MNT/.kms/keys/kmsfs-managed/policy.json"
    exits_with 3 kmsfs key add-user kmsfs-managed bob
    kmsfs audit show --event Decrypt --user bob | grep -q '"kmsfs:item":"x"'
}

@test "customer: a new key of the table's name, or one that is named" {
    kmsfs table create orders --user alice --owner alice --group finance --mode 2770
    equal "$(jq -r '.Encryption, .KeyName' "$MNT/.kms/tables/orders/table.json" | paste -sd' ')" 'customer orders'
    kmsfs table create returns --key orders --owner alice --group finance --mode 2770
    equal "$(jq -r .KeyId "$MNT/.kms/tables/returns/table.json")" "$(jq -r .KeyId "$MNT/.kms/keys/orders/key.json")"
    as alice item returns/x 'sent back'
    equal "$(as alice cat "$MNT/returns/x")" 'sent back'
    fails_with "$EACCES" as bob cat "$MNT/returns/x"
    kmsfs key add-user orders bob
    equal "$(as bob cat "$MNT/returns/x")" 'sent back'
}

@test "key.json has the members of DescribeKey" {
    kmsfs key create orders --admin root --user alice --description 'All orders, of all years'
    json=$MNT/.kms/keys/orders/key.json
    equal "$(jq -r '[.Name, .KeyState, (.Enabled | tostring), .Description, .KeyUsage] | join("|")' "$json")" \
        'orders|Enabled|true|All orders, of all years|ENCRYPT_DECRYPT'
    jq -e '.KeyManager and .Origin and .KeySpec and .CreationDate' "$json"
    jq -e '.Arn == "arn:kmsfs:kms:::key/" + .KeyId and (.KeyId | test("^[0-9a-f]{32}$"))' "$json"
    equal "$(kmsfs --json key describe orders | jq -S .)" "$(jq -S . "$json")"
    exits_with 3 as dora kmsfs key describe orders
}

@test "a table goes with rmdir, and its key stays for its administrators" {
    kmsfs table create orders --user alice --owner alice --group finance --mode 2770
    as alice item orders/x x
    id=$(jq -r .KeyId "$MNT/.kms/keys/orders/key.json")
    # The Unix right at the root comes first, which alice has not; then that it is empty; then the key, of which root is
    # administrator.
    fails_with "$EACCES" as alice rmdir "$MNT/orders"
    fails_with 'Directory not empty' rmdir "$MNT/orders"
    as alice rm "$MNT/orders/x"
    chmod 1777 "$MNT"
    chown bob "$MNT/orders"
    fails_with "$EACCES" as bob rmdir "$MNT/orders"
    rmdir "$MNT/orders"
    fails_with "$ENOENT" stat "$MNT/orders"
    equal "$(jq -r .KeyId "$MNT/.kms/keys/orders/key.json")" "$id"
    mkdir "$MNT/orders"
    equal "$(jq -r .KeyId "$MNT/.kms/tables/orders/table.json")" "$id"
    fails_with EXDEV probe rename "$MNT/orders" "$MNT/renamed"
}

@test "words that contradict one another are refused" {
    exits_with 2 kmsfs table create x --encryption owned --user alice
    exits_with 2 kmsfs table create x --encryption managed --key k
    exits_with 2 kmsfs table create x --encryption rot13
    exits_with 2 kmsfs table create x --owner nobody-of-this-name
    exits_with 7 kmsfs table create x --key no-such-key
    fails_with '' kmsfs table create x --user nobody-of-this-name
    equal "$(ls "$MNT")" ''
}
