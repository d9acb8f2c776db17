#!/usr/bin/env bats
# What the store's files tell to someone who has no root key: sizes, numbers, times, and no word.

load common

# Distinct words that occur nowhere else.
word() { echo "leak$1$(printf '%s' "$1$2" | sha256sum | head -c 12)"; }

@test "two hundred items: no content, name, table, key, user or policy text is in the store" {
    : >"$T/words"
    remember() { printf '%s\n' "$@" >>"$T/words"; }
    table=$(word table 1) key=$(word key 1) description=$(word description 1) sid=$(word sid 1)
    kmsfs key create "$key" --admin carol --admin root --user alice --description "$description"
    kmsfs table create "$table" --key "$key" --owner alice --group finance --mode 2770
    policy_with "$key" ".Statement += [{\"Sid\": \"$sid\", \"Effect\": \"Deny\", \"Principal\": {\"Unix\": [\"witness-of-leaks\"]},
        \"Action\": \"kms:Decrypt\", \"Resource\": \"*\"}]" >"$T/p.json"
    kmsfs policy put "$key" "$T/p.json"
    # No shorter words: three letters turn up in random bytes.
    remember "$table" "$key" "$description" "$sid" alice carol witness-of-leaks 'Key users' 'Key administrators' kms:Decrypt \
        kms:GenerateDataKey 2012-10-17 Principal userIdentity eventName
    folder=$(word folder 1)
    as alice mkdir "$MNT/$table/$folder"
    remember "$folder"
    for i in $(seq 200); do
        name=$(word name "$i") content=$(word content "$i")
        printf '%s %s\n' "$name" "$content"
        remember "$name" "$content"
    done >"$T/items"
    as alice bash -c 'while read -r name content; do
        printf "%s\n" "$content" >"$1/$name" || exit 1
        printf "%s\n%4000s\n%s\n" "$content" "" "$content" >"$2/$name.large" || exit 1
    done' w "$MNT/$table" "$MNT/$table/$folder" <"$T/items"
    as alice setfattr -n user.note -v "$(word attribute 1)" "$MNT/$table/$folder"
    remember "$(word attribute 1)"
    as alice ln -s "$(word target 1)" "$MNT/$table/link"
    remember "$(word target 1)"
    as bob cat "$MNT/$table/$name" 2>/dev/null || true

    check() {
        local found
        for how in '' -i; do
            # shellcheck disable=SC2086
            found=$(grep -raoF $how -f "$T/words" "$STORE" | sort | uniq -c | head -n 5 || true)
            equal "$found" '' || return 1
        done
        equal "$(find "$STORE" "$KMSFS_ANCHOR" -printf '%f\n%l\n' | grep -iFf "$T/words" || true)" '' || return 1
        equal "$(grep -raoF -f "$T/words" "$KMSFS_ANCHOR" || true)" '' || return 1
        equal "$(getfattr -Rhdm - "$STORE" 2>/dev/null | grep -iFf "$T/words" || true)" '' || return 1
        # Neither in another alphabet.
        while read -r _ content; do printf '%s' "$content" | base64; done <"$T/items" | cut -c1-16 >"$T/base64"
        equal "$(grep -raoF -f "$T/base64" "$STORE" | head -n 3 || true)" '' || return 1
    }
    [[ $(wc -l <"$T/words") -gt 400 ]]
    # The daemon runs: journal and trail as they are in the middle of things.
    check
    remount_store
    equal "$(as alice cat "$MNT/$table/$name")" "$content"
    umount_store
    check
    # Control: the search finds what is there.
    echo "$content" >"$STORE/planted"
    equal "$(grep -raoF -f "$T/words" "$STORE")" "$STORE/planted:$content"
    rm "$STORE/planted"
}

@test "two equal items have unrelated ciphertexts, and so have two writes of one item" {
    orders
    head -c 40000 /dev/zero | tr '\0' A >"$T/content"
    chmod 644 "$T/content"
    as alice cp "$T/content" "$MNT/orders/one"
    as alice cp "$T/content" "$MNT/orders/two"
    remount_store
    umount_store
    mapfile -t files < <(find "$STORE/tables" -type f -size +39k)
    equal "${#files[@]}" 2
    blocks() { for file in "$@"; do tail -c +4097 "$file" | od -An -v -tx1 -w16; done; }
    # No 16 bytes occur twice, in one file or across the two, but for the unused room, which is zeros.
    equal "$(blocks "${files[@]}" | grep -v '^\( 00\)*$' | sort | uniq -d)" ''
    cp "${files[0]}" "$T/earlier"
    mount_store
    as alice sh -c "cat $T/content >$MNT/orders/one; cat $T/content >$MNT/orders/two"
    umount_store
    equal "$(blocks "$T/earlier" "${files[@]}" | grep -v '^\( 00\)*$' | sort | uniq -d)" ''
}

@test "equal names in different folders look different, and tell not that they are equal" {
    orders
    as alice sh -c "cd $MNT/orders; mkdir d1 d2; echo x >same; echo x >d1/same; echo x >d2/same"
    umount_store
    equal "$(find "$STORE/tables" -type f ! -name .d -printf '%f\n' | sort | uniq -d)" ''
}

@test "the store is closed to others, and so are its files" {
    equal "$(stat -c '%a %U' "$STORE")" '700 root'
    for user in alice bob; do fails_with "$EACCES" as "$user" ls "$STORE"; done
}

@test "two stores with the same passphrase have nothing in common" {
    kmsfs init "$T/second" --key-file "$KEYFILE"
    umount_store
    not cmp -s "$STORE/root" "$T/second/root"
    common=$(comm -12 <(tail -c +65 "$STORE/root" | od -An -v -tx1 -w16 | sort -u) \
        <(tail -c +65 "$T/second/root" | od -An -v -tx1 -w16 | sort -u) | grep -vc '^\( 00\)*$' || true)
    ((common <= 2)) # kind and parameters of the slot
}
