#!/usr/bin/env bats
# Names and sizes at their limits, before and after a remount.

load common

setup() {
    new_paths
    start_store
    mount_store
    kmsfs table create box --user alice --owner alice --group finance --mode 2770
}

hex() { od -An -v -tx1 | tr -d ' \n'; echo; }

names() { # one name a line, in hexadecimal
    local long
    long=$(printf 'n%.0s' {1..255})
    printf '%s' "$long" | hex
    printf '%s' "${long:0:254}x" | hex
    # 175 is the longest that fits into one backing name; 176 needs a sidecar.
    printf '%s' "${long:0:175}" | hex
    printf '%s' "${long:0:176}" | hex
    printf 'ä%.0s' {1..127} | hex
    printf '\xff\xfe not UTF-8 \x80' | hex
    printf '\x01\n\t\x7f' | hex
    printf ' ' | hex
    printf -- '-rf' | hex
    printf '...' | hex
    printf '.kms' | hex
    printf '.d' | hex
    printf '.l.x' | hex
    printf '.n.x' | hex
    printf '%s' 'a\b"c'"'"'$(d)`e`*?[f]' | hex
}

named() { printf '%b' "$(sed 's/../\\x&/g' <<<"$1")"; }

@test "names of any bytes and of up to 255 of them" {
    while IFS= read -r hex; do
        # A trailing newline in a name would be lost by the substitution; no name here has one at its end.
        name=$(named "$hex"; echo .) && name=${name%.}
        as alice item "box/$name" "$hex"
    done < <(names)
    check() {
        local count=0
        while IFS= read -r hex; do
            name=$(named "$hex"; echo .) && name=${name%.}
            equal "$(as alice cat "$MNT/box/$name")" "$hex"
            count=$((count + 1))
        done < <(names)
        equal "$(find "$MNT/box" -mindepth 1 -printf . | wc -c)" "$count"
        equal "$(find "$MNT/box" -mindepth 1 -printf '%f\0' | sort -z | sha256sum)" \
            "$(names | while IFS= read -r hex; do named "$hex"; printf '\0'; done | sort -z | sha256sum)"
    }
    check
    remount_store
    check
}

@test "a name of 256 bytes is too long, everywhere" {
    long=$(printf 'n%.0s' {1..256})
    fails_with 'File name too long' as alice touch "$MNT/box/$long"
    fails_with 'File name too long' as alice mkdir "$MNT/box/$long"
    fails_with 'File name too long' as alice ln -s x "$MNT/box/$long"
    fails_with 'File name too long' as alice cat "$MNT/box/$long"
    as alice touch "$MNT/box/x"
    fails_with 'File name too long' as alice mv "$MNT/box/x" "$MNT/box/$long"
    equal "$(ls "$MNT/box")" x
}

@test "long names are renamed, removed and made again, in folders too" {
    long=$(printf 'n%.0s' {1..255})
    as alice mkdir "$MNT/box/$long"
    as alice item "box/$long/$long" deep
    as alice mv "$MNT/box/$long/$long" "$MNT/box/short"
    as alice mv "$MNT/box/short" "$MNT/box/$long/${long:0:200}"
    remount_store
    equal "$(as alice cat "$MNT/box/$long/${long:0:200}")" deep
    as alice rm "$MNT/box/$long/${long:0:200}"
    as alice rmdir "$MNT/box/$long"
    as alice item "box/$long" again
    equal "$(as alice cat "$MNT/box/$long")" again
    # Nothing of the old names is left in the store: one item, its sidecar, the folder's own file.
    equal "$(find "$STORE/tables" -mindepth 2 | wc -l)" 3
}

@test "sizes around a block and around the inline limit" {
    sizes='0 1 15 16 3000 3551 3552 3553 4094 4095 4096 4097 8191 8192 8193 458751 458752 458753 462848 1048576 1048577'
    for size in $sizes; do
        head -c "$size" /dev/urandom >"$T/ref.$size"
        chmod 644 "$T/ref.$size"
        as alice cp "$T/ref.$size" "$MNT/box/$size"
        equal "$(stat -c %s "$MNT/box/$size")" "$size"
    done
    for size in $sizes; do as alice cmp "$T/ref.$size" "$MNT/box/$size"; done
    remount_store
    for size in $sizes; do
        equal "$(stat -c %s "$MNT/box/$size")" "$size"
        as alice cmp "$T/ref.$size" "$MNT/box/$size"
    done
}

@test "truncation to each side of each limit, and growth with zeros" {
    head -c 20000 /dev/urandom >"$T/ref"
    chmod 666 "$T/ref"
    as alice cp "$T/ref" "$MNT/box/x"
    for size in 16385 8192 4097 4096 4095 3553 1 0 1 4096 12289 70000; do
        truncate -s "$size" "$T/ref"
        as alice truncate -s "$size" "$MNT/box/x"
        as alice cmp "$T/ref" "$MNT/box/x"
    done
    remount_store
    as alice cmp "$T/ref" "$MNT/box/x"
}

@test "an item of 5 GiB, written here and there" {
    (($(df --output=avail -B1 "$T" | tail -n1) > 7 * 1024 * 1024 * 1024)) || skip "needs 7 GB in $T"
    AS_LIMIT=400
    as alice dd if=/dev/zero of="$MNT/box/big" bs=4M count=1280 status=none
    truncate -s 5G "$T/ref"
    chmod 666 "$T/ref"
    for offset in 0 4095 1073741823 4294967295 4294967296 5368709110; do
        printf 'here %d' "$offset" >"$T/piece"
        for target in "$T/ref" "$MNT/box/big"; do
            as alice dd if="$T/piece" of="$target" bs=1 seek="$offset" conv=notrunc status=none
        done
    done
    equal "$(stat -c %s "$MNT/box/big")" "$(stat -c %s "$T/ref")"
    as alice sync "$MNT/box/big"
    remount_store
    as alice cmp "$T/ref" "$MNT/box/big"
    as alice rm "$MNT/box/big"
}

@test "a hundred thousand items in a table" {
    as alice probe fill "$MNT/box" 0 100000
    equal "$(find "$MNT/box" -type f -printf . | wc -c)" 100000
    remount_store
    equal "$(find "$MNT/box" -type f -printf . | wc -c)" 100000
    for n in 0 1 4711 99999; do equal "$(as alice cat "$MNT/box/item-$n")" "$n"; done
    fails_with "$ENOENT" as alice cat "$MNT/box/item-100000"
    # A listing that is read while items go must give each of the others once.
    as alice find "$MNT/box" -name 'item-*7' -delete
    equal "$(find "$MNT/box" -type f -printf . | wc -c)" 90000
}

@test "table names: which there are, and which there are not" {
    kmsfs table create 'Orders-2026_eu.west' --encryption owned
    mkdir "$MNT/Bestellungen-ä"
    fails_with '' mkdir "$MNT/.kms"
    fails_with 'File name too long' mkdir "$MNT/$(printf 'n%.0s' {1..256})"
    fails_with '' touch "$MNT/an-item-in-the-root"
    exits_with 2 kmsfs table create 'a b'
    exits_with 2 kmsfs table create ../x
}
