#!/usr/bin/env bats
# What a policy would say, whom it lets, what another in its place would change; and saves that undo nobody's.

load common

setup() {
    new_paths
    start_store
    mount_store
    orders
    POLICY=$MNT/.kms/keys/orders/policy.json
}

# One question and its answer, with a shell alone.
ask_file() { # FILE LINE
    exec 9<>"$1"
    { printf '%s\n' "$2" && cat; } >&9
    cat <&9
}

@test "the attribute user.kmsfs.why tells what .kms/why tells" {
    for user in alice bob root; do
        as "$user" getfattr --only-values -n user.kmsfs.why "$MNT/orders/1001.json" >"$T/attribute"
        as "$user" cat "$MNT/.kms/why/orders/1001.json" >"$T/why"
        cmp "$T/attribute" "$T/why"
    done
    grep -q '^denied: ' "$T/why"
    fails_with "$EACCES" as dora getfattr -n user.kmsfs.why "$MNT/orders/1001.json"
    fails_with "$EPERM" as alice setfattr -n user.kmsfs.why -v x "$MNT/orders/1001.json"
    # It is in no listing, and nothing copies it.
    as alice getfattr -d -m - "$MNT/orders/1001.json" | lacks kmsfs
}

@test "simulate names the deciding statement, and agrees with what then happens" {
    policy_with orders '.Statement += [{"Sid": "Public part", "Effect": "Allow", "Principal": {"Unix": ["bob"]},
        "Action": "kms:Decrypt", "Resource": "*",
        "Condition": {"StringLike": {"kms:EncryptionContext:kmsfs:item": "public/*"}}},
        {"Sid": "Not erin", "Effect": "Deny", "Principal": {"Unix": ["erin"]}, "Action": "*", "Resource": "*"}]' >"$T/p.json"
    kmsfs policy put orders "$T/p.json"
    as alice mkdir -m 2770 "$MNT/orders/public"
    as alice item orders/public/x open
    chmod 755 "$MNT/orders" "$MNT/orders/public" && chmod 644 "$MNT"/orders/1001.json "$MNT"/orders/public/x
    for user in alice bob carol erin root; do
        for item in 1001.json public/x; do
            status=0
            as "$user" cat "$MNT/orders/$item" >/dev/null 2>&1 || status=3
            exits_with "$status" as carol kmsfs policy simulate orders --as "$user" --action Decrypt --table orders --item "$item"
        done
    done
    simulate() { as carol kmsfs policy simulate orders --action Decrypt --table orders "$@"; }
    simulate --as alice --item 1001.json | grep -q '^allowed: by statement "Key users"'
    simulate --as bob --item public/x | grep -q '^allowed: by statement "Public part"'
    { simulate --as bob --item 1001.json || true; } | grep -q '^denied: a condition .* "Public part"'
    { simulate --as erin --item public/x || true; } | grep -q '^denied: by statement "Not erin"'
    { simulate --as dora --item public/x || true; } | grep -q '^denied: no statement'
    equal "$(as carol kmsfs --json policy simulate orders --as alice --action kms:Encrypt --context a=b | jq -c '[.Allowed, .EncryptionContext]')" \
        '[true,{"a":"b"}]'
    exits_with 0 as carol kmsfs policy simulate orders --as carol --action PutKeyPolicy
    exits_with 1 as carol kmsfs policy simulate orders --as alice --action Decypt
    exits_with 1 as carol kmsfs policy simulate orders --as no-such-user --action Decrypt
    exits_with 2 as carol kmsfs policy simulate orders --as alice --action Decrypt --item x
}

@test "only who may read a policy may ask about it" {
    exits_with 3 as bob kmsfs policy simulate orders --as bob --action Decrypt
    exits_with 3 as alice kmsfs policy who-can orders Decrypt
    exits_with 3 as bob kmsfs policy diff orders "$T/p.json" 2>/dev/null || [[ $? == 1 ]]
    [[ $(kmsfs audit show --event GetKeyPolicy --denied --user bob | wc -l) -ge 1 ]]
    exits_with 3 as bob kmsfs policy who-can --store CreateKey
}

@test "who-can lists accounts as getent sees them, with why" {
    kmsfs key add-user orders group:readers
    kmsfs key add-user orders uid:4711
    as carol kmsfs policy who-can orders Decrypt --table orders >"$T/who"
    equal "$(awk '{ print $1 }' "$T/who" | sort | paste -sd ' ')" 'alice erin uid'
    grep -q '^uid 4711  *by statement "Key users"' "$T/who"
    equal "$(as carol kmsfs --json policy who-can orders PutKeyPolicy | jq -c '[.Principals[].UserName] | sort')" '["carol","root"]'
    kmsfs policy who-can --store CreateTable | grep -q '^root  *by statement "Store administrators"'
    # For everybody: the accounts, and anyone else.
    kmsfs policy who-can "kmsfs-managed" Decrypt --table orders && return 1
    kmsfs policy who-can "kmsfs-managed" DescribeKey >"$T/who"
    grep -q '^anyone else  *by statement' "$T/who"
    equal "$(grep -c . "$T/who")" $(($(getent passwd | cut -d: -f3 | sort -u | wc -l) + 1)) ||
        (($(grep -c . "$T/who") >= $(getent passwd | wc -l)))
}

@test "diff says who gains and who loses, on which tables, and saves nothing" {
    kmsfs table create returns --key orders
    before=$(kmsfs policy get orders | sha256sum)
    jq "$(adding bob) | $(removing alice)" "$POLICY" >"$T/p.json"
    as carol kmsfs policy diff orders - <"$T/p.json" >"$T/diff"
    grep -Eq '^bob +gains +.*kms:Decrypt.*\(tables orders returns, direct calls\)' "$T/diff"
    grep -Eq '^alice +loses +.*kms:Decrypt' "$T/diff"
    grep -Eq '^(carol|root)' "$T/diff" && return 1
    equal "$(kmsfs policy get orders | sha256sum)" "$before"
    fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
    kmsfs policy get orders | kmsfs policy diff orders - | grep -q 'nobody gains or loses anything'
    # One table alone.
    policy_with orders '.Statement += [{"Effect": "Allow", "Principal": {"Unix": "bob"}, "Action": "kms:Decrypt",
        "Resource": "*", "Condition": {"StringEquals": {"kms:EncryptionContext:kmsfs:table": "returns"}}}]' >"$T/p.json"
    kmsfs policy diff orders "$T/p.json" 2>/dev/null >"$T/diff"
    equal "$(grep . "$T/diff" | sed 's/  */ /g')" 'bob gains kms:Decrypt (tables returns)'
    # What a save would refuse, a diff refuses or says.
    jq "$(adding nobody-of-this-name)" "$POLICY" >"$T/p.json"
    fails_with 'no user or group' kmsfs policy diff orders "$T/p.json"
    jq '.Statement |= map(select(.Sid != "Key administrators"))' "$POLICY" >"$T/p.json"
    as carol kmsfs policy diff orders - <"$T/p.json" 2>&1 | grep -q 'would be refused'
    equal "$(kmsfs --json policy diff orders "$T/p.json" | jq .LockOut)" true
}

@test "a save on top of another's is refused, by the command line and by a shell" {
    generation=$(kmsfs policy get orders --generation)
    equal "$generation" "$(kmsfs --json key describe orders | jq .PolicyGeneration)"
    jq "$(adding bob)" "$POLICY" >"$T/bob.json"
    jq "$(adding erin)" "$POLICY" >"$T/erin.json"
    chmod 644 "$T"/*.json
    as carol kmsfs policy put orders --if-generation "$generation" "$T/bob.json"
    exits_with 5 as carol kmsfs policy put orders --if-generation "$generation" "$T/erin.json" 2>"$T/err"
    grep -q "not generation $generation any more" "$T/err"
    equal "$(kmsfs policy get orders | sha256sum)" "$(sha256sum <"$T/bob.json")"
    # With a shell: the generation is in the name.
    now=$(cat "${POLICY%/*}/policy.generation")
    equal "$now" $((generation + 1))
    for way in "cp $T/erin.json $POLICY@$generation" "cat $T/erin.json >$POLICY@$generation"; do
        fails_with 'Device or resource busy' as carol sh -c "$way"
    done
    cmp "$POLICY@$now" "$T/bob.json"
    as carol sh -c "cat $T/erin.json >$POLICY@$now"
    cmp "$POLICY" "$T/erin.json"
    # A bad document is refused for what is wrong with it, and a stranger for who he is.
    fails_with 'line 1' as carol sh -c "echo '{]' | kmsfs policy put orders --if-generation $((now + 1)) -"
    exits_with 3 as bob kmsfs policy put orders --if-generation $((now + 1)) "$T/bob.json"
    cmp "$POLICY" "$T/erin.json"
    # The store's own policy too.
    kmsfs policy get --store >"$T/store.json"
    generation=$(kmsfs policy get --store --generation)
    kmsfs policy put --store --if-generation "$generation" "$T/store.json"
    exits_with 5 kmsfs policy put --store --if-generation "$generation" "$T/store.json"
}

@test "of twenty savers at once on one generation one wins" {
    generation=$(kmsfs policy get orders --generation)
    save() { # NUMBER
        jq "(.Statement[] | select(.Sid == \"Key users\") | .Principal.Unix) += [\"uid:$((5000 + $1))\"]" "$POLICY" >"$T/p$1.json"
        kmsfs policy put orders --if-generation "$generation" "$T/p$1.json" 2>/dev/null && echo "$1" >>"$T/won"
        return 0
    }
    : >"$T/won"
    for n in {1..20}; do
        background save "$n"
    done
    await
    equal "$(wc -l <"$T/won")" 1
    cmp "$POLICY" "$T/p$(cat "$T/won").json"
    equal "$(kmsfs policy get orders --generation)" $((generation + 1))
}

@test "with a shell alone: a question is a line, its answer JSON" {
    query=$MNT/.kms/keys/orders/query
    equal "$(as carol ask_file "$query" '{"Simulate": {"As": "alice", "Action": "Decrypt", "Table": "orders", "Item": "1001.json"}}' \
        </dev/null | jq .Allowed)" true
    equal "$(as carol ask_file "$query" '{"WhoCan": {"Action": "Decrypt"}}' </dev/null | jq -r '.Principals[].UserName')" alice
    policy_with orders "$(adding bob)" >"$T/p.json"
    equal "$(as carol ask_file "$query" '{"PolicyDiff": {}}' <"$T/p.json" | jq -r '[.Changes[].Who.UserName] | unique[]')" bob
    fails_with "$EINVAL" as carol ask_file "$query" '{"Simulate": {"As": "alice"}, "WhoCan": {}}'
    fails_with "$EINVAL" as carol ask_file "$query" ''
    fails_with "$EACCES" as bob ask_file "$query" '{"WhoCan": {"Action": "Decrypt"}}'
}

@test "the custodian of an unmounted store asks the same" {
    umount_store
    at() { kmsfs --at "$STORE" policy "$@" --key-file "$KEYFILE"; }
    at simulate orders --as alice --action Decrypt --table orders | grep -q '^allowed: by statement "Key users"'
    exits_with 3 at simulate orders --as bob --action Decrypt
    at who-can orders Decrypt | grep -q '^alice '
    at get orders >"$T/p.json"
    jq "$(adding bob)" "$T/p.json" >"$T/q.json"
    at diff orders "$T/q.json" | grep -Eq '^bob +gains'
    generation=$(at get orders --generation)
    at put orders "$T/q.json" --if-generation "$generation" --reason test
    exits_with 5 at put orders "$T/p.json" --if-generation "$generation" --reason test
    mount_store
    as bob cat "$MNT/orders/1001.json" >/dev/null
}
