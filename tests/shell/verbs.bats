#!/usr/bin/env bats
# A key used for itself: encrypt, decrypt, re-encrypt, generate-data-key, with the command line and with a shell alone.

load common

setup() {
    new_paths
    start_store
    mount_store
    kmsfs key create backup --admin carol --admin root --user alice
    kmsfs key create second --admin carol --admin root --user alice
    install -d -m 1777 "$T/w"
}

KMS() { echo "$MNT/.kms/keys/${1:-backup}"; }

# One request and its answer, with a shell alone: the line, then standard input, to a file of the control tree.
ask_file() { # FILE LINE
    exec 9<>"$1"
    { printf '%s\n' "$2" && cat; } >&9
    cat <&9
}

events() { kmsfs audit show | jq -s "map(select($1)) | length"; }

@test "what alice encrypts she decrypts, in its context and in no other" {
    as alice sh -c "printf 'a secret' | kmsfs encrypt backup --context what=token --context host=a >$T/w/c"
    lacks 'a secret' <"$T/w/c"
    equal "$(stat -c %s "$T/w/c")" 100
    equal "$(as alice kmsfs decrypt --context host=a --context what=token "$T/w/c")" 'a secret'
    for wrong in '' '--context what=token' '--context what=token --context host=b' \
        '--context what=token --context host=a --context more=x' '--context What=token --context host=a'; do
        # shellcheck disable=SC2086
        exits_with 6 as alice kmsfs decrypt $wrong "$T/w/c" >"$T/out" 2>"$T/err"
        equal "$(cat "$T/out")" ''
        grep -q 'another encryption context, or damage' "$T/err"
    done
    exits_with 2 as alice kmsfs decrypt --context what=token --context what=x "$T/w/c"
    exits_with 2 as alice kmsfs decrypt --context what "$T/w/c"
}

@test "who is no key user does none of it, root included, and it stands in the trail" {
    as alice sh -c "printf 'a secret' | kmsfs encrypt backup --context what=token >$T/w/c"
    for user in bob carol root; do
        exits_with 3 as "$user" kmsfs encrypt backup --context what=token </dev/null >"$T/out"
        exits_with 3 as "$user" kmsfs decrypt --context what=token "$T/w/c" >>"$T/out"
        exits_with 3 as "$user" kmsfs re-encrypt --to second --context what=token "$T/w/c" >>"$T/out"
        exits_with 3 as "$user" kmsfs generate-data-key backup --context what=token >>"$T/out"
        exits_with 3 as "$user" kmsfs generate-data-key backup --without-plaintext --context what=token >>"$T/out"
        # Policy before authentication.
        exits_with 3 as "$user" kmsfs decrypt "$T/w/c" >>"$T/out"
    done
    equal "$(cat "$T/out")" ''
    for name in Encrypt Decrypt ReEncrypt GenerateDataKey GenerateDataKeyWithoutPlaintext; do
        [[ $(events ".eventName == \"$name\" and .errorCode == \"AccessDenied\" and .userIdentity.uid == 61002") -ge 1 ]]
    done
    [[ $(events '.eventName == "Encrypt" and (.errorCode | not) and .userIdentity.uid == 61001
        and .requestParameters.encryptionContext == {"what": "token"} and .resources[0].name == "backup"') -ge 1 ]]
    kmsfs audit show | lacks 'a secret'
}

@test "the seed story, with AWS's names" {
    kmsfs key create orders --admin carol --admin root
    kmsfs table create orders --key orders --owner alice --group finance --mode 2770
    as carol kmsfs key add-user orders alice
    as alice item orders/1001.json '{"order": 1001}'
    as alice sh -c "kmsfs encrypt orders --context what=backup <$MNT/orders/1001.json >$T/w/c"
    # bob has every Unix right and no key.
    as bob ls -l "$MNT/orders" >/dev/null
    fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
    exits_with 3 as bob kmsfs decrypt --context what=backup "$T/w/c"
    # A key user has the five actions: Encrypt, Decrypt, ReEncrypt*, GenerateDataKey*, DescribeKey.
    as carol kmsfs key add-user orders bob
    equal "$(as bob cat "$MNT/orders/1001.json")" '{"order": 1001}'
    equal "$(as bob kmsfs decrypt --context what=backup "$T/w/c")" '{"order": 1001}'
    as bob sh -c "echo new | kmsfs encrypt orders >$T/w/by-bob"
    as bob sh -c "kmsfs re-encrypt --to orders $T/w/by-bob >$T/w/by-bob2"
    as bob kmsfs generate-data-key orders >/dev/null
    equal "$(as bob kmsfs --json key describe orders | jq -r .KeyState)" Enabled
    as carol kmsfs key remove-user orders bob
    fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
    exits_with 3 as bob kmsfs decrypt --context what=backup "$T/w/c"
    exits_with 3 as bob kmsfs encrypt orders </dev/null
    exits_with 3 as bob kmsfs re-encrypt --to orders "$T/w/by-bob2"
    exits_with 3 as bob kmsfs generate-data-key orders
    exits_with 3 as bob kmsfs key describe orders
}

@test "of any flipped byte, any cut and anything else nothing is printed" {
    as alice sh -c "printf 'a secret of some length' | kmsfs encrypt backup >$T/w/c"
    size=$(stat -c %s "$T/w/c")
    for ((at = 0; at < size; at += 3)); do
        cp "$T/w/c" "$T/w/d"
        printf "\\x$(printf %02x $((0x$(xxd -s "$at" -l 1 -p "$T/w/c") ^ 1)))" |
            dd of="$T/w/d" bs=1 seek="$at" conv=notrunc status=none
        exits_with 6 as alice kmsfs decrypt "$T/w/d" >"$T/out" 2>"$T/err" || { echo "at $at"; return 1; }
        equal "$(cat "$T/out")" ''
    done
    for length in 0 7 8 40 64 91 $((size - 1)); do
        head -c "$length" "$T/w/c" >"$T/w/d"
        exits_with 6 as alice kmsfs decrypt "$T/w/d" >"$T/out"
        equal "$(cat "$T/out")" ''
    done
    exits_with 6 as alice kmsfs decrypt "$KMSFS" >"$T/out"
    equal "$(cat "$T/out")" ''
}

@test "4,096 bytes go to the daemon, more become a stream, and both come back" {
    for size in 0 1 4095 4096 4097 65536 65537 131072 3000000; do
        head -c "$size" /dev/urandom >"$T/w/plain"
        as alice kmsfs encrypt backup --context n=1 "$T/w/plain" >"$T/w/c"
        as alice kmsfs decrypt --context n=1 "$T/w/c" | cmp - "$T/w/plain"
        as alice sh -c "cat $T/w/c | kmsfs decrypt --context n=1" | cmp - "$T/w/plain"
        as alice sh -c "kmsfs decrypt --context n=1 <$T/w/c" | cmp - "$T/w/plain"
        exits_with 6 as alice kmsfs decrypt "$T/w/c" >"$T/out" 2>/dev/null
        equal "$(stat -c %s "$T/out")" 0
        as alice sh -c "kmsfs re-encrypt --to second --context n=1 --to-context m=2 $T/w/c >$T/w/again"
        as alice kmsfs decrypt --key second --context m=2 "$T/w/again" | cmp - "$T/w/plain"
        exits_with 6 as alice kmsfs decrypt --key backup --context m=2 "$T/w/again" >"$T/out" 2>/dev/null
        equal "$(stat -c %s "$T/out")" 0
    done
    # The context of the result is the one that is given for it, and no other.
    as alice sh -c "kmsfs re-encrypt --to second --context n=1 $T/w/c >$T/w/again"
    as alice kmsfs decrypt "$T/w/again" | cmp - "$T/w/plain"
}

@test "a stream that is cut, flipped or put together otherwise prints nothing from a file, and nothing bad from a pipe" {
    head -c 20000000 /dev/zero | tr '\0' x >"$T/w/plain"
    as alice kmsfs encrypt backup "$T/w/plain" >"$T/w/c"
    lacks xxxxxxxxxxxxxxxx <"$T/w/c"
    segment=65552 header=190
    part() { tail -c "+$((header + $1 * segment + 1))" "$T/w/c" | head -c "$segment"; }
    head -c $((header + 290 * segment)) "$T/w/c" >"$T/w/cut"
    { head -c $((header + 290 * segment)) "$T/w/c" && part 291 && part 290 && tail -c "+$((header + 292 * segment + 1))" "$T/w/c"; } >"$T/w/swapped"
    { head -c $((header + 291 * segment)) "$T/w/c" && part 290 && tail -c "+$((header + 291 * segment + 1))" "$T/w/c"; } >"$T/w/doubled"
    cp "$T/w/c" "$T/w/flipped"
    printf '\x00' | dd of="$T/w/flipped" bs=1 seek=$((header + 300 * segment + 5)) conv=notrunc status=none
    { cat "$T/w/c" && printf x; } >"$T/w/longer"
    as alice kmsfs encrypt backup "$T/w/plain" >"$T/w/other"
    { head -c $((header + 300 * segment)) "$T/w/c" && tail -c "+$((header + 300 * segment + 1))" "$T/w/other"; } >"$T/w/mixed"
    for bad in cut swapped doubled flipped longer mixed; do
        exits_with 6 as alice kmsfs decrypt "$T/w/$bad" >"$T/out" 2>"$T/err" || { echo "$bad"; return 1; }
        equal "$(stat -c %s "$T/out")" 0
        grep -Eq 'cut short|does not verify' "$T/err"
        exits_with 6 as alice sh -c "cat $T/w/$bad | kmsfs decrypt" >"$T/out" 2>/dev/null || { echo "$bad"; return 1; }
        # What came out of the pipe is the beginning of what was sealed, in whole segments, and not all of it.
        cmp -n "$(stat -c %s "$T/out")" "$T/out" "$T/w/plain"
        (($(stat -c %s "$T/out") < 20000000))
    done
    # One that is small enough is held back as a whole.
    head -c 3000000 "$T/w/plain" >"$T/w/small"
    as alice kmsfs encrypt backup "$T/w/small" | head -c 2000000 >"$T/w/cut"
    exits_with 6 as alice sh -c "cat $T/w/cut | kmsfs decrypt" >"$T/out" 2>/dev/null
    equal "$(stat -c %s "$T/out")" 0
}

@test "a backup by pipe: tar, encrypt, decrypt, tar" {
    mkdir "$T/tree" && cp "$ROOT"/tests/shell/*.bats "$T/tree"
    tar -C "$T" -c tree | as alice kmsfs encrypt backup --context what=tree >"$T/w/tree.kmsfs"
    mkdir "$T/back"
    as alice kmsfs decrypt --context what=tree "$T/w/tree.kmsfs" | tar -C "$T/back" -x
    diff -r "$T/tree" "$T/back/tree"
    # Nobody reads on: no failure, and an end.
    as alice sh -c 'yes | kmsfs encrypt backup | head -c 200000 >/dev/null'
    as alice sh -c "kmsfs decrypt --context what=tree $T/w/tree.kmsfs | head -c 1 >/dev/null"
}

@test "another store does not open it" {
    as alice sh -c "echo x | kmsfs encrypt backup >$T/w/c"
    umount_store
    mv "$STORE" "$T/first"
    start_store
    mount_store
    kmsfs key create backup --user alice
    exits_with 6 as alice kmsfs decrypt "$T/w/c" 2>"$T/err"
    grep -q 'another store' "$T/err"
}

@test "a data key: plain and sealed, or sealed alone" {
    as alice kmsfs --json generate-data-key backup --context a=b >"$T/w/k"
    equal "$(jq -r .Plaintext "$T/w/k" | base64 -d | wc -c)" 32
    jq -r .CiphertextBlob "$T/w/k" | base64 -d >"$T/w/c"
    as alice kmsfs decrypt --context a=b "$T/w/c" | cmp - <(jq -r .Plaintext "$T/w/k" | base64 -d)
    equal "$(as alice kmsfs --json decrypt --context a=b "$T/w/c" | jq -r .Plaintext)" "$(jq -r .Plaintext "$T/w/k")"
    as alice kmsfs --json generate-data-key backup --without-plaintext --bytes 64 >"$T/w/k"
    equal "$(jq 'has("Plaintext")' "$T/w/k")" false
    jq -r .CiphertextBlob "$T/w/k" | base64 -d >"$T/w/c"
    equal "$(as alice kmsfs decrypt "$T/w/c" | wc -c)" 64
    equal "$(as alice kmsfs --json encrypt backup <"$T/w/k" | jq -r .KeyId)" "$(kmsfs --json key describe backup | jq -r .KeyId)"
}

@test "with a shell alone: one descriptor is the request and the answer" {
    printf 'a secret' >"$T/w/plain"
    chmod 644 "$T/w/plain"
    as alice ask_file "$(KMS)/encrypt" '{"EncryptionContext": {"a": "b"}}' <"$T/w/plain" >"$T/w/c"
    equal "$(as alice ask_file "$MNT/.kms/decrypt" '{"EncryptionContext": {"a": "b"}}' <"$T/w/c")" 'a secret'
    equal "$(as alice kmsfs decrypt --context a=b "$T/w/c")" 'a secret'
    # The key's own file takes what that key has sealed.
    equal "$(as alice ask_file "$(KMS)/decrypt" '{"EncryptionContext": {"a": "b"}}' <"$T/w/c")" 'a secret'
    fails_with "$EBADMSG" as alice ask_file "$(KMS second)/decrypt" '{"EncryptionContext": {"a": "b"}}'
    as alice ask_file "$(KMS second)/re-encrypt" '{"SourceEncryptionContext": {"a": "b"}}' <"$T/w/c" >"$T/w/again"
    # A blank line is a request without any context.
    equal "$(as alice ask_file "$MNT/.kms/decrypt" '' <"$T/w/again")" 'a secret'
    equal "$(as alice ask_file "$(KMS)/generate-data-key" '' </dev/null | jq -r .Plaintext | base64 -d | wc -c)" 32
    as alice ask_file "$(KMS)/decrypt" '' <"$T/w/c" >"$T/out" 2>"$T/err" || true
    equal "$(cat "$T/out")" ''
    grep -q "$EBADMSG" "$T/err"
    grep -q 'another encryption context' "$(KMS)/ctl.result" || as alice grep -q 'another encryption context' "$(KMS)/ctl.result"
    fails_with "$EACCES" as bob ask_file "$(KMS)/encrypt" '{}'
    as bob cat "$(KMS)/ctl.result" | grep -q '^refused: kms:Encrypt denied: the policy does not allow it'
    fails_with "$EINVAL" as alice ask_file "$(KMS)/encrypt" '{"Context": {}}'
    fails_with "$EINVAL" as alice cat "$(KMS)/encrypt"
    fails_with "$EINVAL" as alice sh -c "echo x >$(KMS)/encrypt"
}

@test "a request is bounded" {
    head -c 4097 /dev/zero >"$T/w/long"
    fails_with "$EINVAL" as alice sh -c "exec 9<>$(KMS)/encrypt; { echo; cat $T/w/long; } >&9; cat <&9"
    fails_with 'File too large' as alice sh -c "exec 9<>$(KMS)/encrypt; head -c 100000 /dev/zero >&9"
    long=$(head -c 9000 /dev/zero | tr '\0' x)
    exits_with 1 as alice kmsfs encrypt backup --context "a=$long" </dev/null
}

@test "a custodian of the unmounted store uses no key" {
    as alice sh -c "echo x | kmsfs encrypt backup >$T/w/c"
    umount_store
    exits_with 3 kmsfs --at "$STORE" encrypt backup </dev/null
    exits_with 3 kmsfs --at "$STORE" decrypt "$T/w/c"
    exits_with 3 kmsfs --at "$STORE" re-encrypt --to backup "$T/w/c"
    exits_with 3 kmsfs --at "$STORE" generate-data-key backup
}

@test "on a read-only mount nothing is opened for writing, a request neither; ciphertexts outlive remounts" {
    as alice sh -c "echo x | kmsfs encrypt backup >$T/w/c"
    remount_store --read-only
    fails_with "$EROFS" as alice kmsfs decrypt "$T/w/c"
    remount_store
    equal "$(as alice kmsfs decrypt "$T/w/c")" x
}

@test "a policy keeps a key to its tables, or to contexts" {
    orders
    policy_with orders '.Statement += [{"Sid": "Through tables", "Effect": "Deny", "Principal": "*",
        "Action": ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*"], "Resource": "*",
        "Condition": {"StringNotEquals": {"kms:ViaService": "kmsfs"}}}]' >"$T/p.json"
    kmsfs policy put orders "$T/p.json"
    as alice cat "$MNT/orders/1001.json" >/dev/null
    exits_with 3 as alice kmsfs encrypt orders </dev/null
    policy_with backup '.Statement += [{"Sid": "Tokens", "Effect": "Allow", "Principal": {"Unix": "bob"},
        "Action": "kms:Decrypt", "Resource": "*",
        "Condition": {"StringEquals": {"kms:EncryptionContext:what": "token"}}}]' >"$T/p.json"
    as carol kmsfs policy put backup - <"$T/p.json"
    as alice sh -c "echo yes | kmsfs encrypt backup --context what=token >$T/w/token"
    as alice sh -c "echo no | kmsfs encrypt backup --context what=other >$T/w/other"
    equal "$(as bob kmsfs decrypt --context what=token "$T/w/token")" yes
    exits_with 3 as bob kmsfs decrypt --context what=other "$T/w/other"
    # Another context than its own gets past the policy and does not open it.
    exits_with 6 as bob kmsfs decrypt --context what=token "$T/w/other"
}

@test "a descriptor is decided when it is asked, for who opened it" {
    as alice sh -c "printf 'a secret' | kmsfs encrypt backup >$T/w/c"
    chmod 644 "$T/w/c"
    # alice's descriptor, handed on: its opener's right, as with any file.
    as alice sh -c "exec 9<>$MNT/.kms/decrypt; { echo; cat $T/w/c; } >&9; touch $T/w/asked
        while [ ! -e $T/w/go ]; do sleep 0.05; done; cat <&9 >$T/w/late 2>$T/w/error" 3>&- &
    wait_until 20 test -e "$T/w/asked"
    kmsfs key remove-user backup alice
    touch "$T/w/go"
    wait "$!" || true
    equal "$(cat "$T/w/late")" ''
    grep -q "$EACCES" "$T/w/error"
}

@test "whoever only looks into every file asks for nothing" {
    as alice sh -c "grep -r x $(KMS) >/dev/null 2>&1" || true
    equal "$(kmsfs audit show --event GenerateDataKey | wc -l)" 0
    equal "$(kmsfs audit show --event Encrypt | wc -l)" 0
    fails_with "$EINVAL" as alice sh -c "exec 9<>$(KMS)/generate-data-key; cat <&9"
}

@test "a user's descriptors and questions are bounded, and nobody else's suffer by it" {
    as bob bash -c "for ((n = 0; n < 300; n++)); do exec {fd}<>$(KMS)/encrypt || exit 9; head -c 20000 /dev/zero >&\$fd; done" \
        >"$T/out" 2>&1 && return 1
    grep -q 'Too many open files' "$T/out"
    as alice sh -c 'echo x | kmsfs encrypt backup | kmsfs decrypt'
    # A flood of denials in ever new contexts is counted, not written.
    before=$(kmsfs audit show --denied --user bob | wc -l)
    as bob bash -c "for ((n = 0; n < 200; n++)); do exec 9<>$(KMS)/encrypt; echo '{\"EncryptionContext\": {\"n\": \"'\$n'\"}}' >&9; cat <&9; done" >/dev/null 2>&1 || true
    sleep 2.2
    after=$(kmsfs audit show --denied --user bob | jq -s 'map(.additionalEventData.count // 1) | add')
    ((after - before >= 200))
    (($(kmsfs audit show --denied --user bob | wc -l) - before < 100))
}
