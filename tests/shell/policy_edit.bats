#!/usr/bin/env bats
# A save of a policy is a transaction, whatever it is saved with: a good document is in force when the tool returns, a
# bad one is refused, with the reason in policy.error, and the old one stays in force throughout.

load common

setup() {
    new_paths
    start_store
    mount_store
    orders
    POLICY=$MNT/.kms/keys/orders/policy.json
    DOCS=$T/docs
    install -d -m 777 "$DOCS"
    jq . "$POLICY" >"$DOCS/before.json"
    jq "$(adding bob)" "$POLICY" >"$DOCS/good.json"
    # A closing brace is missing in the middle, so that the mistake is seen before the end of the file.
    awk '/}/ && !done { sub(/}/, ""); done = 1 } 1' "$DOCS/good.json" >"$DOCS/brace.json"
    not jq -e . "$DOCS/brace.json" 2>/dev/null
    jq "$(adding bob) | $(adding nobody-of-this-name)" "$POLICY" >"$DOCS/user.json"
    jq "$(adding bob) | .Statement |= map(select(.Sid != \"Key administrators\"))" "$POLICY" >"$DOCS/lockout.json"
    # Half a document: its end is the only mistake.
    head -c "$(($(stat -c %s "$DOCS/good.json") / 2))" "$DOCS/good.json" >"$DOCS/half.json"
    chmod 644 "$DOCS"/*.json
    export VIM_NAME
    VIM_NAME=$(command -v vim || command -v vim.tiny)
}

# --- the idioms: each saves the document $1 as the key's policy, and fails if its tool does -------------------------

by_vim_script() { as carol "$VIM_NAME" -es -u NONE -c "%!cat $1" -c wq -c cq "$POLICY" </dev/null; }

by_vim() {
    local failed=0
    terminal carol "$VIM_NAME -u DEFAULTS -N $POLICY"
    sees 'policy.json" [0-9]+'
    types ":%!cat $1\r"
    sees '[0-9]+ (more |fewer )?lines|\}'
    types ':w\r'
    sees 'written|E[0-9]+:'
    ! screen_has 'E[0-9]+:' 1 || failed=1
    types '\r:q!\r'
    leaves || true
    return "$failed"
}

by_nano() {
    local failed=0
    terminal carol "nano --ignorercfiles $POLICY"
    sees 'Read [0-9]+ lines'
    types '\x1bt' # cut to the end
    sees Modified
    types "\x12$1\r" # read the file
    sees 'Read [0-9]+ lines' 2
    types '\x0f\r' # write
    sees 'Wrote [0-9]+ lines|Error writing'
    ! screen_has 'Error writing' 1 || failed=1
    types '\x18n' # leave; no, do not try again
    leaves || true
    return "$failed"
}

by_sed() { as carol sed -i -e "1e cat $1" -e d "$POLICY"; }
by_cp() { as carol cp "$1" "$POLICY"; }
by_cp_force() { as carol cp -f --remove-destination "$1" "$POLICY"; }
by_mv_from_elsewhere() {
    as carol cp "$1" "$DOCS/moving.json"
    as carol mv "$DOCS/moving.json" "$POLICY"
}
by_mv_inside() {
    as carol cp "$1" "$POLICY.new"
    as carol mv "$POLICY.new" "$POLICY"
}
by_redirection() { as carol bash -c "cat $1 >$POLICY"; }
by_printf() { as carol bash -c "printf '%s\n' \"\$(<$1)\" >$POLICY"; }
by_tee() { as carol bash -c "set -o pipefail; cat $1 | tee $POLICY >/dev/null"; }
by_sponge() { as carol bash -c "set -o pipefail; cat $1 | sponge $POLICY"; }
by_dd() { as carol dd if="$1" of="$POLICY" bs=512 status=none; }
by_kmsfs() { as carol kmsfs policy put orders "$1"; }

# --- what must hold ----------------------------------------------------------------------------------------------

in_force() { # before|good
    equal "$(jq -S . "$POLICY")" "$(jq -S . "$DOCS/$1.json")"
    as alice cat "$MNT/orders/1001.json" >/dev/null
    if [[ $1 == good ]]; then
        as bob cat "$MNT/orders/1001.json" >/dev/null
    else
        fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
    fi
}

good_save_by() { # IDIOM
    "$1" "$DOCS/good.json"
    in_force good
    equal "$(cat "${POLICY%.json}.error" 2>/dev/null || true)" ''
    "$1" "$DOCS/before.json"
    in_force before
}

# The tool must fail too, unless it is one that cannot notice.
bad_save_by() { # IDIOM KIND PATTERN-OF-THE-REASON
    not "$1" "$DOCS/$2.json"
    in_force before
    grep -Eq "$3" "${POLICY%.json}.error" || { echo "$1 $2:"; cat "${POLICY%.json}.error"; return 1; }
}

every_save_by() { # IDIOM
    good_save_by "$1"
    bad_save_by "$1" brace 'line [0-9]+,? column [0-9]+'
    bad_save_by "$1" user 'line [0-9]+,? column [0-9]+.*nobody-of-this-name'
    bad_save_by "$1" lockout 'PutKeyPolicy'
    good_save_by "$1"
    # No temporary file is left that a listing shows.
    equal "$(as carol ls -A "$(dirname "$POLICY")" | grep -vxE 'policy\.(json|error|generation)|key\.json|ctl|ctl\.result|grants(\.jsonl)?|status\.json|query|(en|de|re-en)crypt|generate-data-key' | grep -vE '~$|\.new$|\.sw[a-z]$' || true)" ''
}

@test "vim, as a script" { every_save_by by_vim_script; }
@test "vim, on a terminal" { every_save_by by_vim; }
@test "nano, on a terminal" { every_save_by by_nano; }
@test "sed -i" { every_save_by by_sed; }
@test "cp" { every_save_by by_cp; }
@test "cp --remove-destination" { every_save_by by_cp_force; }
@test "mv from another file system" { every_save_by by_mv_from_elsewhere; }
@test "mv inside of the key's folder" { every_save_by by_mv_inside; }
@test "redirection of cat" { every_save_by by_redirection; }
@test "redirection of printf" { every_save_by by_printf; }
@test "tee" { every_save_by by_tee; }
@test "jq and sponge" { every_save_by by_sponge; }
@test "dd in small blocks" { every_save_by by_dd; }
@test "kmsfs policy put" { every_save_by by_kmsfs; }

@test "mv prints a reason that a person understands" {
    as carol cp "$DOCS/user.json" "$POLICY.new"
    fails_with "$EBADMSG" as carol mv "$POLICY.new" "$POLICY"
}

@test "half a document is refused at the latest when it is closed" {
    for idiom in by_vim_script by_cp by_mv_inside by_redirection by_tee by_sponge by_dd by_kmsfs by_sed; do
        bad_save_by "$idiom" half 'line [0-9]+,? column [0-9]+'
    done
    # A shell's own printf does not look at what close says; the policy and its reason are right all the same.
    by_printf "$DOCS/half.json" || true
    in_force before
    grep -Eq 'line [0-9]+,? column [0-9]+' "${POLICY%.json}.error"
}

@test "an empty file, a truncation and a removal leave the policy in force" {
    as carol bash -c ": >$POLICY" || true
    in_force before
    as carol truncate -s 0 "$POLICY" || true
    in_force before
    as carol rm "$POLICY"
    as alice cat "$MNT/orders/1001.json" >/dev/null
    fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
    # To others it was never gone.
    jq -e .Statement "$POLICY" >/dev/null
    as carol cp "$DOCS/good.json" "$POLICY"
    in_force good
}

@test "documents beyond the rules are refused, each with its reason" {
    refused() { # FILTER PATTERN
        jq "$1" "$DOCS/good.json" >"$DOCS/bad.json"
        bad_save_by by_cp bad "$2"
    }
    refused '.Statement[0].Action = "kms:Decipher"' 'kms:Decipher'
    refused '.Statement[0].Condition = {"StringSeems": {"aws:username": "x"}}' 'StringSeems'
    refused '.Statement[0].Principal.Unix += ["group:no-such-group"]' 'no-such-group'
    refused '.Statement[0].Effect = "Perhaps"' 'Perhaps'
    refused '.Statment = []' 'Statment'
    refused 'del(.Statement)' 'Statement'
    refused '.Id = ("x" * 40000)' '32'
    printf '{"Version": "2012-10-17", "Version": "2012-10-17", "Statement": []}' >"$DOCS/bad.json"
    bad_save_by by_cp bad 'Version'
    printf '\xff\xfe{}' >"$DOCS/bad.json"
    bad_save_by by_cp bad 'line 1,? column 1'
}

@test "who may not edit the policy cannot save, hide or read what is not his" {
    as carol kmsfs policy get orders | cmp - "$POLICY"
    for user in alice bob dora; do
        fails_with "$EACCES" as "$user" cp "$DOCS/good.json" "$POLICY"
        fails_with "$EACCES" as "$user" rm -f "$POLICY"
        fails_with "$EACCES" as "$user" bash -c "echo x >$POLICY"
        exits_with 3 as "$user" kmsfs policy put orders "$DOCS/good.json"
        exits_with 3 as "$user" kmsfs key add-user orders "$user"
    done
    exits_with 3 as dora kmsfs policy get orders
    in_force before
}

@test "root, once no administrator, cannot edit either" {
    jq '(.Statement[] | select(.Sid == "Key administrators") | .Principal.Unix) = ["carol"]' "$POLICY" >"$DOCS/carol.json"
    as carol cp "$DOCS/carol.json" "$POLICY"
    fails_with "$EACCES" cp "$DOCS/good.json" "$POLICY"
    exits_with 3 kmsfs key add-user orders root
    fails_with "$EACCES" cat "$MNT/orders/1001.json"
    as carol cp "$DOCS/good.json" "$POLICY"
}

@test "what is saved is what is read, byte by byte" {
    printf '%s   \n\n' "$(jq -c "$(adding bob)" "$POLICY")" >"$DOCS/odd.json"
    as carol cp "$DOCS/odd.json" "$POLICY"
    as carol cat "$POLICY" | jq -S . | cmp - <(jq -S . "$DOCS/odd.json")
    as carol cp "$DOCS/before.json" "$POLICY"
    as carol cmp "$DOCS/before.json" "$POLICY"
}

@test "a policy survives a remount, and the reason of a refusal is the editor's own" {
    as carol cp "$DOCS/good.json" "$POLICY"
    not as carol cp "$DOCS/user.json" "$POLICY"
    grep -q nobody-of-this-name "${POLICY%.json}.error"
    remount_store
    in_force good
}

@test "a thousand good and bad saves: readers see only right outcomes" {
    jq -c '.Id = "other"' "$DOCS/before.json" >"$DOCS/other.json"
    for user in alice bob; do install -d -o "$user" "$T/watch.$user"; done
    background as alice probe watch yes "$MNT/orders/1001.json" "$T/stop" >"$T/watch.alice/seen"
    background as bob probe watch EACCES "$MNT/orders/1001.json" "$T/stop" >"$T/watch.bob/seen"
    as carol bash -c '
        for ((i = 0; i < 250; i++)); do
            cat "$1/other.json" >"$2" || exit 1
            cat "$1/brace.json" >"$2" 2>/dev/null && exit 2
            cp "$1/before.json" "$2" || exit 3
            cp "$1/user.json" "$2" 2>/dev/null && exit 4
        done
        exit 0' saves "$DOCS" "$POLICY"
    touch "$T/stop"
    await
    for user in alice bob; do
        grep -qE '^[0-9]{3,} times as it must be$' "$T/watch.$user/seen" || { echo "$user:"; cat "$T/watch.$user/seen"; return 1; }
    done
}
