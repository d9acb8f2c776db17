#!/usr/bin/env bats
# Grants: a right beside the policy, for one user or group, bound to items and to a time; made, listed and ended by files
# and by commands; and what is left of it the moment it ends.

load common

setup() {
    new_paths
    start_store
    mount_store
    orders
    as alice item orders/1002.json '{"order": 1002}'
    GRANTS=$(KEY_DIR)/grants
    ITEM=$MNT/orders/1001.json OTHER=$MNT/orders/1002.json
}

granted() { kmsfs grant create orders "$@"; }

lost() { [[ $(ask read) =~ ^(EACCES|ESTALE)$ ]]; }

# Waits for a second of the clock to have begun.
past() { # SECONDS-SINCE-1970
    while (($(date +%s) < $1)); do sleep 0.02; done
}

@test "a grant with a context opens that item and no other" {
    fails_with "$EACCES" as bob cat "$ITEM"
    id=$(granted bob --operations Decrypt --table orders --item 1001.json)
    as bob grep -q 1001 "$ITEM"
    fails_with "$EACCES" as bob cat "$OTHER"
    fails_with "$EACCES" as dora cat "$ITEM"
    # Not under another name, nor by moving another item to the name.
    as alice ln "$ITEM" "$MNT/orders/link"
    fails_with "$EACCES" as bob cat "$MNT/orders/link"
    fails_with "$EACCES" as bob mv "$OTHER" "$ITEM"
    # It gives what it says.
    fails_with "$EACCES" as bob sh -c "echo x >>$ITEM"
    as bob head -n 1 "$MNT/.kms/why/orders/1001.json" | grep -q '^allowed: '
    as bob cat "$MNT/.kms/why/orders/1001.json" | lacks "$id"
    as bob head -n 1 "$MNT/.kms/why/orders/1002.json" | grep -q '^denied: '
    kmsfs grant revoke orders "$id"
    fails_with "$EACCES" as bob cat "$ITEM"
    as alice cat "$ITEM"
}

@test "a grant for a context opens what was sealed in it, by a direct call, and nothing else" {
    for what in a b; do
        echo "$what" | as alice kmsfs encrypt orders --context "what=$what" >"$T/$what"
    done
    exits_with 3 as bob kmsfs decrypt --context what=a "$T/a"
    granted bob --operations Decrypt --context-subset what=a --expires 1h
    equal "$(as bob kmsfs decrypt --context what=a "$T/a")" a
    exits_with 3 as bob kmsfs decrypt --context what=b "$T/b"
    fails_with "$EACCES" as bob cat "$ITEM"
    simulated() { kmsfs --json policy simulate orders --as bob --action Decrypt "$@" | jq .Allowed; }
    equal "$(simulated --context what=a)" true
    equal "$(simulated --context what=b)" false
    kmsfs policy who-can orders Decrypt --context what=a | grep -q '^bob\|bob'
}

@test "whoever may list grants learns which one decides" {
    id=$(granted carol --operations Decrypt)
    as carol head -n 1 "$MNT/.kms/why/orders/1001.json" | grep -qF "allowed: by grant $id"
}

@test "a grant to a group, and one that adds items without reading them" {
    granted group:finance --operations Decrypt
    as bob cat "$ITEM"
    fails_with "$EACCES" as dora cat "$ITEM"
    granted dora --operations Encrypt,GenerateDataKey
    setfacl -m u:dora:rwx "$MNT/orders"
    as dora item orders/box hello
    fails_with "$EACCES" as dora cat "$MNT/orders/box"
}

@test "a Deny for everybody beats any Allow and any grant" {
    granted bob --operations Decrypt
    as bob cat "$ITEM"
    policy_with orders '.Statement += [{"Sid": "Closed", "Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt",
        "Resource": "*"}]' >"$T/p.json"
    kmsfs policy put orders "$T/p.json"
    for who in alice bob root; do
        fails_with "$EACCES" as "$who" cat "$ITEM"
    done
}

@test "revocation reaches files that are open, mapped and cached, before it returns" {
    id=$(granted bob --operations Decrypt)
    hold bob r "$ITEM"
    grep -q 1001 <<<"$(ask read)"
    kmsfs grant revoke orders "$id"
    equal "$(ask read)" EACCES
    id=$(granted bob --operations Decrypt,RetireGrant)
    hold bob r "$OTHER"
    grep -q 1002 <<<"$(ask read)"
    # By its grantee, with rm.
    as bob rm "$GRANTS/$id.json"
    equal "$(ask read)" EACCES
    fails_with "$EACCES" as bob cat "$ITEM"
    kmsfs audit show --event RetireGrant | grep -q '"userName":"bob"'
}

@test "a grant ends at its second, on an open file too, and no restart revives it" {
    end=$(($(date +%s) + 4))
    granted bob --operations Decrypt --expires "$(date -u -d "@$end" +%FT%TZ)"
    hold bob r "$ITEM"
    grep -q 1001 <<<"$(ask read)"
    as alice cat "$ITEM" >"$T/out"
    past "$end"
    # EACCES, or the file has a new inode for those who may still read it.
    wait_until 5 lost
    fails_with "$EACCES" as bob cat "$ITEM"
    as alice cat "$ITEM"
    wait_until 5 sh -c "kmsfs audit show --event ExpireGrant | grep -q ExpireGrant"
    kmsfs grant list orders | grep -q expired
    let_go
    remount_store
    fails_with "$EACCES" as bob cat "$ITEM"
}

@test "grants are files: made by writing one, read, listed, ended by removing it" {
    as carol sh -c "echo '{\"Grantee\": \"bob\", \"Operations\": [\"Decrypt\"]}' >$GRANTS/for-bob.json"
    as bob cat "$ITEM"
    id=$(as carol jq -r .GrantId "$GRANTS/for-bob.json")
    equal "$(ls "$GRANTS")" "$id.json"
    equal "$(jq -r .GranteePrincipal "$GRANTS/$id.json")" bob
    equal "$(jq -r .GranteeId "$GRANTS/$id.json")" "uid:$(id -u bob)"
    # The name is its maker's; others see the grant.
    fails_with "$ENOENT" cat "$GRANTS/for-bob.json"
    as carol rm "$GRANTS/$id.json"
    fails_with "$EACCES" as bob cat "$ITEM"
    # Several in one commit, by cp, and again under the same name.
    cat >"$T/many" <<<'{"Grants": [{"Grantee": "bob", "Operations": ["Decrypt"]}, {"Grantee": "uid:77", "Operations": ["Encrypt"]}]}'
    as carol cp "$T/many" "$GRANTS/for-bob.json"
    equal "$(as carol jq length "$GRANTS/for-bob.json")" 2
    equal "$(ls "$GRANTS" | wc -l)" 2
    as bob cat "$ITEM"
    as carol sh -c "jq -c '.Grants[1]' $T/many >$GRANTS/for-bob.json"
    equal "$(kmsfs --json grant list orders | jq length)" 3
    as carol rm "$GRANTS/for-bob.json"
    equal "$(wc -l <"$(KEY_DIR)/grants.jsonl")" 2
    rm "$GRANTS"/*.json
    equal "$(ls "$GRANTS")" ''
    fails_with "$EACCES" as bob cat "$ITEM"
}

@test "grants are made by whatever writes a file" {
    document='{"Grantee": "bob", "Operations": ["Decrypt"]}'
    echo "$document" >"$T/document"
    made() { equal "$(find "$GRANTS" -type f | wc -l)" "$1"; }
    tee "$GRANTS/1.json" <"$T/document" >/dev/null && made 1
    sponge "$GRANTS/2.json" <"$T/document" && made 2
    dd if="$T/document" of="$GRANTS/3.json" bs=10 status=none && made 3
    printf %s "$document" >"$GRANTS/4.json" && made 4
    cat "$T/document" >>"$GRANTS/5.json" && made 5
    vim=$(command -v vim || command -v vim.tiny)
    "$vim" -es -u NONE -c "%!cat $T/document" -c wq -c cq "$GRANTS/6.json" </dev/null && made 6
    mv "$T/document" "$GRANTS/7.json" && made 7
    # A document that stops short makes nothing.
    printf '{"Grantee": "bob",' >"$GRANTS/8.json"
    grep -q '^refused: ' "$(KEY_DIR)/ctl.result" && made 7
}

@test "a kill while grants are made and revoked leaves whole batches" {
    expect_unclean_stop
    expect_log 'record files that no change has listed'
    batch=$(jq -cn '{Grants: [range(150) | {Grantee: "uid:\(.)", Operations: ["Decrypt"]}]}')
    ordering() { while echo "$batch" >"$GRANTS/b.json"; do :; done; }
    for ((round = 0; round < 4; round++)); do
        background ordering 2>/dev/null
        sleep 0.$((RANDOM % 9))
        kill_daemon
        await || true
        umount -l "$MNT"
        mount_store
        equal $(($(wc -l <"$(KEY_DIR)/grants.jsonl") % 150)) 0
    done
    as alice cat "$ITEM"
}

@test "with a full disk a grant can be ended" {
    umount_store
    mkdir "$T/disk"
    mount -t tmpfs -o size=24m tmpfs "$T/disk"
    cp -a "$STORE" "$T/disk/store"
    STORE=$T/disk/store
    mount_store
    expect_log 'No space left on device|disk is full|no space is kept'
    id=$(granted bob --operations Decrypt)
    hold bob r "$ITEM"
    not as alice dd if=/dev/zero of="$MNT/orders/filler" bs=64K status=none 2>/dev/null
    kmsfs grant revoke orders "$id"
    [[ $(ask read) =~ ^(EACCES|ESTALE)$ ]]
    fails_with "$EACCES" as bob cat "$ITEM"
    let_go
    remount_store
    fails_with "$EACCES" as bob cat "$ITEM"
    as alice cat "$ITEM"
    umount_store
    umount "$T/disk"
}

@test "what is refused makes nothing, and says why" {
    refused() { # TEXT REASON
        fails_with "$EINVAL" as carol bash -c "echo '$1' >$GRANTS/x.json"
        as carol grep -qF "$2" "$(KEY_DIR)/ctl.result"
    }
    refused 'hello' 'expected value at line 1'
    refused '{"Grantee": "bob"}' 'missing field `Operations`'
    refused '{"Grantee": "no-such-user", "Operations": ["Decrypt"]}' "no user 'no-such-user'"
    refused '{"Grantee": "*", "Operations": ["Decrypt"]}' 'GranteePrincipal'
    refused '{"Grantee": "bob", "Operations": ["PutKeyPolicy"]}' 'nothing that a grant can give'
    refused '{"Grantee": "bob", "Operations": ["Decrypt"], "Expires": "2001-01-01"}' 'in the past'
    refused '{"Grantee": "bob", "Operations": ["Decrypt"], "Until": "1h"}' 'unknown field `Until`'
    refused '{"Grants": [{"Grantee": "bob", "Operations": ["Decrypt"]}, {"Grantee": "bob", "Operations": []}]}' 'is empty'
    equal "$(ls "$GRANTS")" ''
    fails_with "$ENOENT" as carol cat "$GRANTS/x.json"
    # A grant is no document to be edited, and the folder holds nothing else.
    id=$(granted bob --operations Decrypt)
    fails_with "$EPERM" sh -c "echo '{}' >$GRANTS/$id.json"
    fails_with "$EPERM" touch "$GRANTS/.x.json.swp"
    fails_with "$EPERM" mkdir "$GRANTS/x"
    fails_with "$EPERM" mv "$GRANTS/$id.json" "$GRANTS/y.json"
    fails_with "$EPERM" rmdir "$GRANTS"
    fails_with "$EPERM" ln -s x "$GRANTS/y.json"
    fails_with "$EPERM" ln "$GRANTS/$id.json" "$GRANTS/y.json"
    fails_with "$EPERM" mkfifo "$GRANTS/y.json"
    exits_with 1 as carol kmsfs grant create orders bob --operations Sign
    exits_with 2 kmsfs grant create orders bob
}

@test "only those whom the policy lets make, see and end grants do" {
    id=$(granted bob --operations Decrypt)
    for who in alice bob dora; do
        fails_with "$EACCES" as "$who" sh -c "echo '{\"Grantee\": \"$who\", \"Operations\": [\"Decrypt\"]}' >$GRANTS/x.json"
        exits_with 3 as "$who" kmsfs grant create orders "$who" --operations Decrypt
        exits_with 3 as "$who" kmsfs grant revoke orders "$id"
        exits_with 3 as "$who" kmsfs grant list orders
    done
    # His own the grantee may look at; of others he learns nothing, also not that they are there.
    equal "$(as bob ls "$GRANTS")" "$id.json"
    as bob jq -e .Operations "$GRANTS/$id.json"
    fails_with "$EACCES" as bob rm "$GRANTS/$id.json"
    equal "$(as dora ls "$GRANTS")" ''
    fails_with "$ENOENT" as dora cat "$GRANTS/$id.json"
    fails_with "$ENOENT" as dora rm "$GRANTS/$id.json"
    as bob cat "$ITEM"
}

@test "a grantee with CreateGrant cannot widen what he has" {
    granted bob --operations Decrypt,CreateGrant --table orders --item 1001.json --expires 1h
    as bob cat "$ITEM"
    by_bob() { as bob kmsfs grant create orders "$@"; }
    exits_with 3 by_bob dora --operations Decrypt
    exits_with 3 by_bob dora --operations Decrypt --table orders --expires 30m
    exits_with 3 by_bob dora --operations Decrypt --table orders --item 1002.json --expires 30m
    exits_with 3 by_bob dora --operations Decrypt --table orders --item 1001.json
    exits_with 3 by_bob dora --operations Decrypt --table orders --item 1001.json --expires 2h
    exits_with 3 by_bob dora --operations Decrypt,Encrypt --table orders --item 1001.json --expires 30m
    exits_with 3 by_bob bob --operations Decrypt
    by_bob dora --operations Decrypt --table orders --item 1001.json --expires 30m
    setfacl -m u:dora:rx "$MNT/orders" && setfacl -m u:dora:r "$ITEM" "$OTHER"
    as dora cat "$ITEM"
    fails_with "$EACCES" as dora cat "$OTHER"
    exits_with 3 as dora kmsfs grant create orders erin --operations Decrypt --table orders --item 1001.json --expires 1m
}

@test "grants on an unmounted store, by its custodian" {
    id=$(granted bob --operations Decrypt --name first)
    umount_store
    offline() { kmsfs --at "$STORE" "$@" --key-file "$KEYFILE"; }
    exits_with 2 offline grant create orders dora --operations Decrypt
    two=$(offline grant create orders dora --operations Decrypt --reason 'on call')
    equal "$(offline --json grant list orders | jq -r '.[].GrantId' | sort)" "$(printf '%s\n' "$id" "$two" | sort)"
    offline grant revoke orders "$id" --reason 'left'
    mount_store
    fails_with "$EACCES" as bob cat "$ITEM"
    setfacl -m u:dora:rx "$MNT/orders" && setfacl -m u:dora:r "$ITEM"
    as dora cat "$ITEM"
    kmsfs audit show --event RevokeGrant | grep -q '"reason":"left"'
    kmsfs audit show --event CreateGrant | grep -q '"granteePrincipal":"dora"'
}

@test "a record of grants that was tampered with closes the key until an administrator lets it go" {
    granted bob --operations Decrypt
    umount_store
    cp -a "$STORE/records" "$T/records"
    expect_log 'TamperingFound|does not verify|record'
    attack() { # SHELL-COMMAND, the record's path is $1
        bash -c "$1" - "$STORE"/records/*.4.*
        mount_store
        fails_with "$EBADMSG" as alice cat "$ITEM"
        fails_with "$EBADMSG" as bob cat "$ITEM"
        as alice stat "$ITEM" >"$T/out"
        kmsfs audit show --event TamperingFound | grep -q 'Grant'
        umount_store
        rm -r "$STORE/records"
        cp -a "$T/records" "$STORE/records"
    }
    # shellcheck disable=SC2016
    {
        attack 'rm "$1"'
        attack 'truncate -s -1 "$1"'
        attack 'printf X | dd of="$1" bs=1 seek=60 conv=notrunc status=none'
        attack 'cat "$(ls -d "$(dirname "$1")"/*.1.* | head -n 1)" >"$1"'
    }
    mount_store
    as bob cat "$ITEM"
    as alice cat "$ITEM"
    umount_store
    rm "$STORE"/records/*.4.*
    mount_store
    fails_with "$EBADMSG" as alice cat "$ITEM"
    fails_with "$EACCES" as alice bash -c "echo forget-damaged-grants >$(KEY_DIR)/ctl"
    as carol sh -c "echo forget-damaged-grants >$(KEY_DIR)/ctl"
    as alice cat "$ITEM"
    fails_with "$EACCES" as bob cat "$ITEM"
    remount_store
    as alice cat "$ITEM"
}

@test "a store that was put back to before a revocation does not mount" {
    id=$(granted bob --operations Decrypt)
    umount_store
    cp -a "$STORE" "$T/old"
    mount_store
    kmsfs grant revoke orders "$id"
    umount_store
    mv "$STORE" "$T/new"
    cp -a "$T/old" "$STORE"
    expect_log 'an older copy was put in its place'
    exits_with 6 mount_store
}

@test "what has expired stays so with the clock set back, and is let go after a week" {
    umount_store
    new_paths
    GRANTS=$(KEY_DIR)/grants ITEM=$MNT/orders/1001.json
    export KMSFS_TEST_CLOCK=$T/clock
    clock() { # SECONDS
        echo "$1" >"$T/clock.new"
        mv "$T/clock.new" "$T/clock"
    }
    clock 0
    start_store --for-tests
    mount_store
    orders
    granted bob --operations Decrypt --expires 2h
    hold bob r "$ITEM"
    clock 7100
    grep -q 1001 <<<"$(ask read)"
    clock 7300
    wait_until 5 sh -c "kmsfs audit show --event ExpireGrant | grep -q ExpireGrant"
    wait_until 5 lost
    clock 0
    fails_with "$EACCES" as bob cat "$ITEM"
    let_go
    remount_store
    fails_with "$EACCES" as bob cat "$ITEM"
    clock -90000
    fails_with "$EACCES" as bob cat "$ITEM"
    equal "$(ls "$GRANTS" | wc -l)" 1
    # A jump counts for a day.
    local day
    for ((day = 1; day <= 8; day++)); do
        clock $((day * 86400))
        as alice cat "$ITEM" >"$T/out"
        sleep 1.2
    done
    wait_until 5 sh -c "test -z \"\$(ls $GRANTS)\""
    kmsfs audit show --event RevokeGrant | grep -q expired
    unset KMSFS_TEST_CLOCK
}
