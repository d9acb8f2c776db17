# What attacks on the files of a store share, by someone who can write them and has no root key. `pristine` gives each a
# copy of one store, which is kept with its anchor, its key file and the sums of its items in $BATS_FILE_TMPDIR/pristine.
# Loaded after common.
# shellcheck shell=bash disable=SC2034,SC2059,SC2154

eval "common_$(declare -f setup_file)"
eval "common_$(declare -f teardown)"

setup() {
    new_paths
    # What is attacked is reported in the log; a panic is not among it (teardown).
    expect_log '^\[[^]]* (WARN|ERROR) '
    pristine
    TABLES=$STORE/tables
}

teardown() {
    local panics=0
    ! grep -q 'panicked at' "$LOG" 2>/dev/null || panics=1
    common_teardown && return "$panics"
}

# The store, its anchor and its key file as they were before any attack.
pristine() {
    local from=$BATS_FILE_TMPDIR/pristine
    rm -rf "$STORE" "$KMSFS_ANCHOR"
    cp -a "$from/store" "$STORE"
    cp -a "$from/anchor" "$KMSFS_ANCHOR"
    cp -a "$from/key" "$KEYFILE"
    SUMS=$from/sums
}

# The backing file of a length; fails unless there is exactly one.
backing() {
    local found
    mapfile -t found < <(find "$TABLES" -type f -size "$1c")
    [ "${#found[@]}" -eq 1 ] || { echo "files of $1 bytes: ${#found[@]}" >&2; return 1; }
    printf '%s\n' "${found[0]}"
}

# The folder in the store that holds the most files of a length.
folder_of() {
    find "$TABLES" -type f -size "$1c" -printf '%h\n' | sort | uniq -c | sort -rn | awk 'NR == 1 { print $2 }'
}

# Flips one bit: file, offset, bit.
flip() {
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    printf "\\x$(printf %02x $((byte ^ 1 << ${3:-0})))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# Copies bytes: from, offset, to, offset, count.
transplant() {
    dd if="$1" bs=1 skip="$2" count="$5" status=none | dd of="$3" bs=1 seek="$4" conv=notrunc status=none
}

# Exchanges a range of bytes between two places: file, offset, file, offset, count.
exchange() {
    local save="$T/exchanged"
    dd if="$1" bs=1 skip="$2" count="$5" of="$save" status=none
    transplant "$3" "$4" "$1" "$2" "$5"
    transplant "$save" 0 "$3" "$4" "$5"
}

exchange_files() { mv "$1" "$1.x" && mv "$2" "$1" && mv "$1.x" "$2"; }

# What reading a path gives alice: `ok`, or the words of its errno.
outcome() {
    local text
    if text=$(LC_ALL=C as alice timeout 20 cat "$MNT/$1" 2>&1 >/dev/null); then
        echo ok
    else
        echo "${text##*: }"
    fi
}

# What reading each of many paths gives alice, in one process: a line each, errno words or `ok`.
outcomes() { # PATH...
    cd "$MNT" || return
    local path text
    for path in "$@"; do
        if text=$(LC_ALL=C cat "$path" 2>&1 >/dev/null); then echo ok; else echo "${text##*: }"; fi
    done
}

# Reading each fails because the store was tampered with, and in no other way.
assert_noticed() { # PATH...
    local result
    as alice outcomes "$@" >"$T/outcomes"
    equal "$(wc -l <"$T/outcomes")" $#
    if grep -nvxE "$EBADMSG|$EUCLEAN" "$T/outcomes"; then
        echo "not noticed among: ${*:1:3} ..."
        return 1
    fi
}

# The daemon lives and serves what was not touched, unchanged.
assert_rest_served() { # [PATH]...
    local path
    for path in "${@:-others/well}"; do
        (cd "$MNT" && grep -F "  ./$path" "$SUMS" | as alice sha256sum --check --quiet) || return 1
    done
}

# The trail, read after the mount, has an event of this name.
assert_event() { # [NAME]
    umount_store
    kmsfs --at "$STORE" audit show --key-file "$KEYFILE" --event "${1:-TamperingFound}" >"$T/events"
    [[ -s $T/events ]] || { echo "no ${1:-TamperingFound} in the trail"; return 1; }
}

# Backing files of a length into the array FOUND, whose number must be as given.
find_backing() { # LENGTH COUNT
    mapfile -t FOUND < <(find "$TABLES" -type f -size "$1c" | sort)
    equal "${#FOUND[@]}" "$2"
}

names() { ls "$MNT/$1"; }

verify_offline() { kmsfs --at "$STORE" audit verify --key-file "$KEYFILE"; }

# Makes bob a user of the key that has the table's name, keeps the store as it is then, and takes him out again.
with_older_store() { # PATH
    local key=${1%%/*}
    mount_store
    kmsfs key add-user "$key" bob
    as bob cat "$MNT/$1" >"$T/read"
    umount_store
    cp -a "$STORE" "$T/older"
    mount_store
    kmsfs key remove-user "$key" bob
    fails_with "$EACCES" as bob cat "$MNT/$1"
    umount_store
}
