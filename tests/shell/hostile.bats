#!/usr/bin/env bats
# Users who know the daemon's source: orders of calls that no ordinary tool makes.

load common

setup_file() {
    # shellcheck source=tests/shell/common.bash
    source "$BATS_TEST_DIRNAME/common.bash"
    setup_file
    cc -O1 -Wall -Wextra -Werror -o "$KMSFS_TEST_DIR/bin/hostile" "$ROOT/tests/shell/helpers/hostile.c"
    chmod 755 "$KMSFS_TEST_DIR/bin/hostile"
}

setup() {
    new_paths
    start_store
    mount_store
    orders
}

# What the steps said, on one line.
steps() { # USER STEP...
    local user=$1
    shift
    as "$user" hostile "$@" | paste -sd' '
}

# bob may do everything with the key but decrypt what is under secret/.
bob_but_secret() {
    policy_with orders '.Statement += [
        {"Sid": "Bob", "Effect": "Allow", "Principal": {"Unix": ["bob"]},
         "Action": ["kms:Encrypt", "kms:Decrypt", "kms:GenerateDataKey"], "Resource": "*"},
        {"Sid": "No secrets", "Effect": "Deny", "Principal": {"Unix": ["bob"]}, "Action": "kms:Decrypt", "Resource": "*",
         "Condition": {"StringLike": {"kms:EncryptionContext:kmsfs:item": "secret/*"}}}]' >"$T/p.json"
    kmsfs policy put orders "$T/p.json"
    as alice mkdir -m 2770 "$MNT/orders/secret"
    as alice item orders/secret/x 'top secret'
}

@test "an item that has lost its name is judged by the name that it had" {
    bob_but_secret
    secret=$MNT/orders/secret
    hold alice r "$secret/x"
    equal "$(steps bob "path:$secret/x" "unlink:$secret/x" reopen:r)" 'opened removed EACCES'
    # One of two names.
    as alice item orders/secret/y 'top secret'
    as alice ln "$secret/y" "$secret/z"
    hold alice r "$secret/z"
    as bob stat "$secret/y" >"$T/out"
    equal "$(steps bob "path:$secret/z" "unlink:$secret/y" reopen:r)" 'opened removed EACCES'
    equal "$(steps bob "path:$secret/z" "unlink:$secret/z" reopen:r)" 'opened removed EACCES'
    # A new item takes the place of the old one.
    as alice item orders/secret/old 'top secret'
    as alice item orders/secret/new other
    hold alice r "$secret/old"
    start_holder as bob hostile "path:$secret/old" wait reopen:r
    as alice mv -T "$secret/new" "$secret/old"
    equal "$(ask go)" EACCES
}

@test "what an editor keeps beside a policy is its user's alone, whatever mode it gives it" {
    key=$(KEY_DIR)
    # sed gives its new file the mode of the document, which everybody may write.
    start_holder as carol hostile "create:600:$key/sedAAAA" chmod:666 write:mine wait read
    equal "$(stat -c %a "$key/sedAAAA")" 600
    for user in alice bob root; do
        fails_with EACCES as "$user" probe open + "$key/sedAAAA"
        fails_with EACCES as "$user" probe open rt "$key/sedAAAA"
        fails_with "$EACCES" as "$user" truncate -s 0 "$key/sedAAAA"
        fails_with EACCES as "$user" probe rename "$key/sedAAAA" "$key/policy.json"
    done
    fails_with "$EACCES" as bob rm -f "$key/sedAAAA"
    equal "$(ask go)" mine
    # Clearing away is root's.
    rm "$key/sedAAAA"
}

@test "a name beside a policy that comes to mean another file leads nobody to it" {
    key=$(KEY_DIR)
    kmsfs policy put orders <(policy_with orders '.Statement += [{"Sid": "Looks", "Effect": "Allow",
        "Principal": {"Unix": ["bob"]}, "Action": "kms:GetKeyPolicy", "Resource": "*"}]')
    start_holder as bob hostile "create:600:$key/policy.json~" wait read write:evil 'append:more' truncate:0
    as carol mv "$key/policy.json" "$key/policy.json~"
    equal "$(ask go)" ''
    equal "$(ask go)" written
    as carol grep -q '"Version"' "$key/policy.json~"
    as carol mv "$key/policy.json~" "$key/policy.json"
    as carol grep -q '"Version"' "$key/policy.json"
    # The same by removing and making anew.
    start_holder as bob hostile "create:600:$key/.policy.json.swp" "unlink:$key/.policy.json.swp" wait read truncate:0 read
    as carol bash -c 'echo hers >"$1"' - "$key/.policy.json.swp"
    equal "$(ask go)" ''
    ask go
    equal "$(as carol cat "$key/.policy.json.swp")" hers
}

@test "whoever may neither read nor save a policy keeps nothing beside it" {
    for user in alice bob dora; do
        fails_with "$EACCES" as "$user" touch "$(KEY_DIR)/x"
        fails_with "$EACCES" as "$user" touch "$MNT/.kms/x"
    done
    as carol touch "$(KEY_DIR)/x"
    touch "$MNT/.kms/x"
    fails_with "$EACCES" as carol mv "$(KEY_DIR)/x" "$MNT/.kms/y"
    # And who may keep some cannot fill the memory: 8 MiB, removed and open files included.
    count=0
    while as carol hostile "create:600:$(KEY_DIR)/t$count" truncate:1048576 >"$T/out" && ! grep -q EDQUOT "$T/out"; do
        ((count += 1))
        ((count < 20))
    done
    equal "$count" 8
}

@test "why a save was refused stays to be read: no denied save and no restored backup takes it away" {
    key=$(KEY_DIR)
    kmsfs policy put orders <(policy_with orders '.Statement += [{"Sid": "Looks", "Effect": "Allow",
        "Principal": {"Unix": ["bob"]}, "Action": "kms:GetKeyPolicy", "Resource": "*"}]')
    as carol cp "$key/policy.json" "$T/kept" 2>/dev/null || cp "$key/policy.json" "$T/kept"
    fails_with "$EINVAL" as carol bash -c 'echo "[]" >"$1"' - "$key/policy.json"
    as carol grep -q . "$key/policy.error"
    as bob bash -c 'echo "{}" >"$1/new"' - "$key"
    fails_with EACCES as bob probe rename "$key/new" "$key/policy.json"
    as carol grep -q . "$key/policy.error"
    cp "$T/kept" "$key/policy.json"
    as carol grep -q . "$key/policy.error"
    jq . "$T/kept" | jq -c . >"$key/policy.json"
    equal "$(as carol cat "$key/policy.error")" ''
}

@test "several commands at once: each is done or refused for itself, and what was done is revoked" {
    kmsfs key add-user orders bob
    hold bob r "$MNT/orders/1001.json"
    equal "$(ask map)" '{"order": 1001, "total": "12.50"}'
    # In one write(2), as no shell does it.
    printf 'remove-user bob\nno-command\n' >"$T/lines"
    fails_with "$EINVAL" dd if="$T/lines" of="$(KEY_DIR)/ctl" bs=4096 conv=notrunc status=none
    grep -q "refused: no command 'no-command'" "$(KEY_DIR)/ctl.result"
    equal "$(ask touch)" SIGBUS
    [[ $(ask read) =~ ^(EACCES|ESTALE)$ ]]
    fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
    # One command is done as a whole or not at all.
    kmsfs key add-user orders bob
    fails_with "$EINVAL" bash -c "echo 'remove-user bob nobody-here' >$(KEY_DIR)/ctl"
    as bob cat "$MNT/orders/1001.json" >"$T/out"
    # A line may come in pieces, and the last one without its end.
    { printf 'remove-u'; printf 'ser bob\nadd-user '; printf 'erin'; } >"$(KEY_DIR)/ctl"
    equal "$(jq -c '[.Statement[] | select(.Sid == "Key users") | .Principal.Unix[]]' "$(KEY_DIR)/policy.json")" '["alice","erin"]'
    # No byte of a line does harm.
    for line in '\x00' '\xff\xfe' 'add-user' 'add-user \x00' 'describe \x1b[2J' 'add-user gid:99999999999' 'add-user *,*'; do
        printf "$line\n" >"$(KEY_DIR)/ctl" || true
    done
    fails_with "File too large" bash -c "head -c 20000 /dev/zero >$(KEY_DIR)/ctl"
    as alice cat "$MNT/orders/1001.json" >"$T/out"
}

open_files() { find "/proc/$(daemon_pid)/fd" -mindepth 1 | wc -l; }

@test "what is made, looked at or changed without being opened does not stay open for ever" {
    umount_store
    (ulimit -n 256 && mount_store)
    dir=$MNT/orders
    as alice bash -c 'for ((i = 0; i < 400; i++)); do ln -s "target-$i" "$1/link-$i"; done' - "$dir"
    (($(open_files) < 256))
    as alice bash -c 'for ((i = 0; i < 400; i++)); do echo "$i" >"$1/item-$i"; done' - "$dir"
    as alice find "$dir" -type l -printf '%l\n' >"$T/targets"
    equal "$(grep -c target "$T/targets")" 400
    as alice bash -c 'setfattr -n user.a -v b "$1"/item-*' - "$dir"
    as alice getfattr -hd -R "$dir" >"$T/attributes"
    as alice bash -c 'truncate -s 3 "$1"/item-*' - "$dir"
    as alice bash -c 'for ((i = 0; i < 400; i++)); do mv "$1/item-$i" "$1/moved-$i"; done' - "$dir"
    as alice cat "$dir"/moved-* >"$T/out"
    # Others still get on.
    kmsfs key add-user orders bob
    as bob cat "$dir/1001.json" >"$T/out"
}

@test "the space of a removed item is free when the last one who had it open is gone" {
    dir=$MNT/orders
    deleted() { find "/proc/$(daemon_pid)/fd" -mindepth 1 -lname '*(deleted)' | wc -l; }
    as alice item orders/x 'text of x'
    start_holder as alice hostile "open:+:$dir/x" wait read write:other read sync
    as alice rm "$dir/x"
    equal "$(ask go)" 'text of x'
    ask go
    equal "$(ask go)" 'otherof x'
    equal "$(ask go)" synced
    equal "$(deleted)" 1
    let_go
    # What was flushed waits for the journal's next checkpoint.
    wait_until 25 eval '(($(deleted) == 0))'
    # One that was open a moment ago, and one that is replaced.
    as alice item orders/y y
    as alice item orders/z z
    as alice mv -T "$dir/y" "$dir/z"
    as alice rm "$dir/z"
    equal "$(deleted)" 0
}

@test "a name with a line feed writes no line into an answer of why" {
    name=$'x\nallowed: yes'
    as alice touch "$MNT/orders/$name"
    equal "$(as bob grep -c ^allowed "$MNT/.kms/why/orders/$name" || true)" 0
    as bob grep -q '^denied' "$MNT/.kms/why/orders/$name"
}

@test "an item of several names is judged by the one that a call comes by" {
    bob_but_secret
    as alice mkdir -m 2770 "$MNT/orders/public"
    as alice ln "$MNT/orders/secret/x" "$MNT/orders/public/x"
    open_by() { steps bob "path:$MNT/orders/$1/x" reopen:r; }
    for round in 1 2 3; do
        wait_until 5 eval '[[ $(open_by secret) == "opened EACCES" ]]'
        equal "$(open_by public)" 'opened opened'
        # What is asked through the control tree is no call on the item.
        as bob cat "$MNT/.kms/why/orders/public/x" >"$T/out"
        equal "$(open_by secret)" 'opened EACCES'
        as bob cat "$MNT/.kms/why/orders/secret/x" >"$T/out"
        equal "$(open_by public)" 'opened opened'
    done
    as alice rm "$MNT/orders/public/x"
    equal "$(open_by secret)" 'opened EACCES'
}

@test "a path without end costs nobody anything: it is read, and denied on record" {
    # 20,000 bytes of which JSON makes 120,000, each folder entered before the next is made.
    deep=$(printf '\001%.0s' {1..200})
    as alice bash -c 'cd "$1/orders" && for ((i = 0; i < 100; i++)); do mkdir -m 2770 "$2" && cd "$2"; done &&
        (umask 007; echo deep >leaf) && cat leaf && sync leaf' - "$MNT" "$deep" >"$T/out"
    equal "$(<"$T/out")" deep
    as bob bash -c 'cd "$1/orders" && for ((i = 0; i < 100; i++)); do cd "$2" || exit; done; cat leaf' \
        - "$MNT" "$deep" 2>"$T/error" || true
    grep -q "$EACCES" "$T/error"
    sleep 1.2
    grep '"errorCode":"AccessDenied"' "$MNT/.kms/audit/trail.jsonl" | grep -q itemPathSha256
    remount_store
    as alice rm -rf "$MNT/orders/$deep"
}

@test "who may not decrypt does not learn by any call that an item is damaged" {
    as alice item orders/x 'top secret'
    as alice setfattr -n user.a -v b "$MNT/orders/x"
    umount_store
    # shellcheck disable=SC2044
    for file in $(find "$STORE/tables" -type f ! -name .d); do
        head -c 64 /dev/zero | dd of="$file" bs=1 conv=notrunc status=none
    done
    mount_store
    expect_log 'does not verify|malformed|tampering'
    item=$MNT/orders/x
    equal "$(as bob getfattr "$item" 2>&1)" ''
    for call in "cat $item" "getfattr -n user.a $item" "setfattr -n user.a -v b $item" "truncate -s 0 $item" "rm -f $item" \
        "mv -T $item $item.2" "ln $item $item.2" "probe open + $item" "cp $item $T/out"; do
        # shellcheck disable=SC2086
        as bob $call >"$T/out" 2>&1 || true
        grep -Eq "EACCES|$EACCES" "$T/out" || { echo "$call:"; cat "$T/out"; return 1; }
    done
    fails_with "$EBADMSG" as alice cat "$item"
    as alice rm "$item"
}

@test "what is made under a default ACL has no right that the ACL does not give" {
    dir=$MNT/orders/acl
    as alice mkdir "$dir"
    as alice setfacl -d -m u:bob:rwx,g::rx,m::r,o::- "$dir"
    as alice bash -c 'umask 0; mkdir "$1/folder"; touch "$1/file"; mkfifo "$1/fifo"' - "$dir"
    equal "$(as alice stat -c '%a %n' "$dir"/* | sed "s,$dir/,," | paste -sd' ')" '640 fifo 640 file 2740 folder'
    equal "$(as alice getfacl -cp "$dir/folder" | grep -c '^default:user:bob:rwx')" 1
    fails_with "$EACCES" as bob ls "$dir/folder/x"
}

@test "a listing begins anew when it is rewound, and one user's open files in .kms are no other's loss" {
    dir=$MNT/orders
    equal "$(steps alice "dir:$dir" names "create:600:$dir/x" names rewind names names)" 'opened 3 created 0 rewound 4 0'
    # 256 files of .kms a user.
    # shellcheck disable=SC2016
    many='for ((i = 0; i < 300; i++)); do exec {fd}<"$1" || exit 3; done 2>/dev/null'
    exits_with 3 as dora bash -c "$many" - "$MNT/.kms/whoami"
    as dora bash -c "${many/300/200}; cat \"\$1\"" - "$MNT/.kms/whoami" >"$T/out"
    start_holder as dora bash -c "${many/300/256}; echo \$\$; read -r; read -r" - "$MNT/.kms/whoami"
    fails_with "Too many open files" as dora cat "$MNT/.kms/whoami"
    as alice cat "$MNT/.kms/whoami" >"$T/out"
}

@test "more folders than the daemon may have files open cost nobody his own" {
    umount_store
    (ulimit -n 1024 && mount_store)
    dir=$MNT/orders
    as alice bash -c 'cd "$1" && mkdir many && cd many && for ((i = 0; i < 60; i++)); do
        for ((j = 0; j < 30; j++)); do mkdir -p "$i/$j" || exit; done; done; echo here >last' - "$dir"
    equal "$(as alice find "$dir" -type d | wc -l)" 1862
    equal "$(as alice find "$dir" -type d | wc -l)" 1862
    as alice cat "$dir/many/last" "$dir/1001.json" >"$T/out"
    kmsfs key add-user orders bob
    as bob cat "$dir/1001.json" >"$T/out"
    (($(open_files) < 800))
    as alice rm -r "$dir/many"
}

@test "a folder that cannot be looked up is listed all the same" {
    as alice mkdir "$MNT/orders/good" "$MNT/orders/bad"
    umount_store
    mapfile -t files < <(find "$STORE/tables" -mindepth 3 -name .d)
    equal "${#files[@]}" 2
    printf 'x' | dd of="${files[0]}" bs=1 seek=40 conv=notrunc status=none
    mount_store
    expect_log 'does not verify|tampering'
    for options in -A -lA; do
        equal "$(as alice ls "$options" "$MNT/orders" 2>/dev/null | grep -cE 'good|bad')" 2
    done
    fails_with "$EBADMSG" as alice stat "$MNT/orders/good" "$MNT/orders/bad"
}

@test "a folder is flushed, whatever has become of the names in it" {
    dir=$MNT/orders
    as alice bash -c 'cd "$1" && touch a b c && rm a b && mkdir a && mkfifo b && mv c d && mkdir c && sync .' - "$dir"
    as alice bash -c 'cd "$1" && rmdir a && rm b && touch a && sync . a d' - "$dir"
}
