#!/usr/bin/env bash
# Measures kmsfs beside other FUSE file systems and the plain disk: the same load for each, on the same disk.
#
#   bench/run.sh                         all of it: some forty minutes, best on a machine that does nothing else
#   bench/run.sh --rounds 5 --pinned     more rounds; client and daemon on one core only
#   bench/run.sh --quick securefs        small sizes, seconds each: tries the harness, its numbers mean nothing
#
#   --rounds N                           how often (3); medians are printed, with the least and the most
#   --million                            also makes 1,000,000 items in kmsfs and mounts them; takes some minutes more
#   --as-is | --pinned | --both          on all cores, on one core (CPU, 0 by default), or both (the default)
#   PEER...                              limit (in memory, does no work: the bound), bindfs gocryptfs gocryptfs-own
#                                        securefs encfs, and of kmsfs itself kmsfs-group (its user is admitted by a
#                                        group) and kmsfs-owned (a table without a policy); kmsfs and the plain disk
#                                        are always there; without `limit` no bound is told
#
# Writes bench/RESULTS.md and bench/RESULTS.svg, or with --quick the same below target/bench. Stores lie in WORK_DIR
# (/var/tmp), which should be on a real disk. Needs root, and Debian's apt for what is missing; empties the kernel's
# caches again and again. Works in namespaces of its own, so that nothing stays mounted or running behind it.
set -euo pipefail

export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive CARGO_TERM_COLOR=never
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$here")
WORK_DIR=${WORK_DIR:-/var/tmp}
CPU=${CPU:-0}

die() { echo "bench: $*" >&2; exit 1; }
say() { printf '%s\n' "$*" >&2; }

# --- before the namespaces: what is asked, what is needed -------------------------------------------------------------

usage() {
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

parse() { # ARGUMENT...
    rounds='' modes='as-is pinned' quick=0 million=0 peers=()
    while (($#)); do
        case $1 in
            --rounds) [[ ${2-} =~ ^[1-9][0-9]?$ ]] || usage; rounds=$2; shift ;;
            --as-is) modes='as-is' ;;
            --pinned) modes='pinned' ;;
            --both) modes='as-is pinned' ;;
            --quick) quick=1 ;;
            --million) million=1 ;;
            kmsfs | plain) ;;
            limit | bindfs | gocryptfs | gocryptfs-own | securefs | encfs | kmsfs-group | kmsfs-owned) peers+=("$1") ;;
            *) usage ;;
        esac
        shift
    done
    ((${#peers[@]})) || peers=(limit bindfs gocryptfs gocryptfs-own securefs encfs)
    rounds=${rounds:-$((quick ? 1 : 3))}
}

# Peers are optional: one that cannot be had is left out, and said so.
install_missing() {
    local need peer packages=() wanted=(gcc:gcc gcc:libc6-dev fusermount3:fuse3 fio:fio jq:jq python3:python3)
    for peer in "${peers[@]}"; do
        [[ $peer == kmsfs* || $peer == limit ]] || wanted+=("${peer%-own}:${peer%-own}")
    done
    for need in "${wanted[@]}"; do
        command -v "${need%%:*}" >/dev/null || packages+=("${need#*:}")
    done
    ((${#packages[@]})) || return 0
    say "installing ${packages[*]}"
    command -v apt-get >/dev/null || die "please install: ${packages[*]}"
    apt-get update -qq
    for need in "${packages[@]}"; do
        apt-get install -y -qq --no-install-recommends "$need" >/dev/null || say "no package $need"
    done
}

build() {
    KMSFS=${KMSFS:-}
    if [[ -z $KMSFS ]]; then
        say 'building kmsfs'
        cargo build --quiet --release --locked --manifest-path "$repository/Cargo.toml"
        KMSFS=${CARGO_TARGET_DIR:-$repository/target}/release/kmsfs
    fi
    cargo build --quiet --release --locked --manifest-path "$repository/Cargo.toml" --example limit --example decide
    mkdir "$W/bin"
    install -m 755 "$KMSFS" "$W/bin/kmsfs"
    install -m 755 "${CARGO_TARGET_DIR:-$repository/target}"/release/examples/{limit,decide} "$W/bin/"
    gcc -O2 -Wall -Wextra -pthread -o "$W/bin/ops" "$here/ops.c"
}

# One line a fact, for the head of the results.
facts() {
    local peer
    fact() { printf '%s\t%s\n' "$1" "$2"; }
    fact date "$(date -u +%Y-%m-%d)"
    fact processor "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores$(
        grep -qw hypervisor /proc/cpuinfo && echo ', virtual')"
    fact memory "$(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)"
    fact kernel "$(uname -r)"
    fact disk "$(findmnt -no FSTYPE,OPTIONS -T "$WORK_DIR" | tr -s ' ')"
    fact load "$(cut -d' ' -f1 /proc/loadavg) at the start"
    fact kmsfs "$("$W/bin/kmsfs" --version | awk '{ print $2 }') ($(
        git -C "$repository" describe --always --dirty 2>/dev/null || echo 'no checkout'))"
    for peer in "${peers[@]}"; do
        [[ $peer != *-* && $peer != limit ]] || continue
        fact "$peer" "$(dpkg-query -Wf '${Version}' "$peer" 2>/dev/null || echo 'unknown')"
    done
    fact sizes "$ITEMS items of 1 KiB, files of $MIB and $BESIDE MiB, a tree of $SOURCES files; rounds: $rounds"
}

# With the first process of the namespaces all others and all mounts go, in their time.
clean_up() {
    [[ -z $inside_pid ]] || kill -9 "$inside_pid" 2>/dev/null || true
    local try
    for try in 1 2 3 4 5; do
        ! rm -rf --one-file-system "$W" 2>/dev/null || return 0
        sleep "$try"
    done
}

outside() {
    parse "$@"
    [[ $(id -u) == 0 ]] || die 'must be run as root: it mounts, and empties the caches'
    [[ -c /dev/fuse ]] || die 'no /dev/fuse: nothing can be mounted here'
    install_missing
    W=$(mktemp -d "$WORK_DIR/kmsfs-bench.XXXXXXXX")
    inside_pid=
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP
    chmod 755 "$W"
    [[ $(findmnt -no FSTYPE -T "$W") != tmpfs ]] || say "$WORK_DIR is in memory: set WORK_DIR to a place on a disk"
    export ITEMS=10000 MIB=256 BESIDE=1024 SOURCES=5000 LIMIT=120 MANY=$((million * 1000000))
    if ((quick)); then ITEMS=200 MIB=8 BESIDE=16 SOURCES=100 LIMIT=20 MANY=$((million * 2000)); fi
    build
    facts >"$W/facts"
    : >"$W/raw"
    unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
        env W="$W" "$here/run.sh" --inside "$rounds" "$modes" plain kmsfs "${peers[@]}" &
    inside_pid=$!
    wait "$inside_pid" || die 'the measurement ended early'
    inside_pid=
    local out=$here
    if ((quick)); then out=${CARGO_TARGET_DIR:-$repository/target}/bench; mkdir -p "$out"; fi
    python3 "$here/report.py" "$W/facts" "$W/raw" "$out/RESULTS.md" "$out/RESULTS.svg"
    say "written: $out/RESULTS.md and RESULTS.svg"
}

# --- one file system at a time: mounted, unmounted --------------------------------------------------------------------

# Who serves FUSE in here: the daemon of the one mount that there is.
daemons() {
    find /proc/[0-9]*/fd -lname /dev/fuse 2>/dev/null | cut -d/ -f3 | sort -u
}

# Runs a command that must end in time. What hangs ends when the daemon that it waits for is gone.
bounded() { # SECONDS COMMAND...
    local limit=$1 command clock ended='' status=0
    shift
    "$@" &
    command=$!
    sleep "$limit" &
    clock=$!
    wait -n -p ended "$command" "$clock" || status=$?
    if [[ $ended == "$clock" ]]; then
        status=124
        abort
        kill -9 "$command" 2>/dev/null || true
        wait "$command" 2>/dev/null || true
    else
        kill "$clock" 2>/dev/null || true
        wait "$clock" 2>/dev/null || true
    fi
    return "$status"
}

# Ends the daemon and clears its mount away, whatever state they are in.
abort() {
    local pid
    for pid in $(daemons); do kill -9 "$pid" 2>/dev/null || true; done
    umount -l "$M" 2>/dev/null || true
}

# A new store.
make() {
    case $peer in
        kmsfs*)
            (umask 077 && head -c 64 /dev/urandom >"$W/key" && mkdir -p "$W/anchor")
            kmsfs init "$S" --key-file "$W/key"
            ;;
        gocryptfs*) gocryptfs -init -q -scryptn 10 -passfile "$W/password" "$S" ;;
        securefs) securefs create --pass password "$S" ;;
    esac
}

mount_it() {
    case $peer in
        plain) return 0 ;;
        kmsfs*) kmsfs mount "$S" "$M" --key-file "$W/key" --log-file "$W/log" ;;
        limit) setsid limit "$M" </dev/null & ;;
        bindfs) bindfs -o allow_other "$S" "$M" ;;
        gocryptfs) gocryptfs -q -nosyslog -allow_other -passfile "$W/password" "$S" "$M" ;;
        gocryptfs-own) gocryptfs -q -nosyslog -passfile "$W/password" "$S" "$M" ;;
        securefs) securefs mount -b --pass password -o allow_other --log "$W/log" "$S" "$M" ;;
        encfs) encfs --standard -S --public "$S" "$M" <"$W/password" ;;
    esac
}

attach() {
    bounded 30 mount_it >>"$W/log" 2>&1 || return 1
    [[ $peer != plain ]] || return 0
    local try
    for try in {1..200}; do
        ! mountpoint -q "$M" || return 0
        sleep 0.05
    done
    say "not mounted after $try looks"
    return 1
}

# Unmounts and waits until the daemon has written everything and is gone, its greatest memory noted.
detach() {
    [[ $peer != plain && -n $(daemons) ]] || return 0
    local pid try
    for pid in $(daemons); do
        awk '/^VmHWM/ { print $2 / 1024 }' "/proc/$pid/status" >>"$W/memory"
        awk '/^VmRSS/ { print $2 / 1024 }' "/proc/$pid/status" >"$W/memory-end"
    done
    for try in 1 2 3 4 5; do
        ! bounded 60 umount "$M" 2>>"$W/log" || break
        sleep "0.$try"
    done
    for try in {1..600}; do
        [[ -n $(daemons) ]] || return 0
        sleep 0.05
    done
    say "the daemon was still there after $try looks"
    return 1
}

flush() { sync -f "$W"; }

# Nothing of it is cached anywhere any more. What is in memory alone stays mounted.
cold() {
    [[ $peer == limit ]] || detach || return 1
    flush
    echo 3 >/proc/sys/vm/drop_caches
    [[ $peer == limit ]] || attach
}

# Where the load goes: for kmsfs a table that one user's policy admits, with the trail it has by default.
prepare() {
    case $peer in
        kmsfs) kmsfs --at "$M" table create load --user uid:0 --mode 755 ;;
        kmsfs-group) kmsfs --at "$M" table create load --user gid:0 --mode 755 ;;
        kmsfs-owned) kmsfs --at "$M" table create load --encryption owned --mode 755 ;;
        *) mkdir "$L" ;;
    esac
}

# What is measured must be what is promised: nobody, whom the modes let in, is refused by the policy, and the trail
# says that.
in_force() {
    [[ $peer == kmsfs || $peer == kmsfs-group ]] || return 0
    local nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups) refusal
    echo probe >"$L/probe" || return 1
    "${nobody[@]}" stat "$L/probe" >/dev/null || return 1
    refusal=$("${nobody[@]}" cat "$L/probe" 2>&1) && return 1
    [[ $refusal == *'Permission denied'* ]] || return 1
    [[ $(kmsfs --at "$M" audit show --denied -n 1) == *AccessDenied* ]] || return 1
    rm "$L/probe"
}

# --- the load ---------------------------------------------------------------------------------------------------------

record() { # METRIC VALUE
    printf '%s\t%s\t%s\t%s\t%s\n' "$mode" "$round" "$peer" "$1" "$2" >>"$W/raw"
}

fail() { # TEXT
    say "$peer ($mode, round $round): $1; left out from here on"
    record failed "$1"
    tail -n 5 "$W/log" >&2 || true
}

# Runs one part of the load and records what it prints, a number for each metric; '-' is not recorded.
measure() { # METRICS COMMAND...
    local metrics=$1 metric left=$((deadline - SECONDS)) status=0 values=()
    shift
    ((left > 0)) || { fail 'took too long'; return 1; }
    bounded "$((left < LIMIT ? left : LIMIT))" "$@" >"$W/out" 2>>"$W/log" || status=$?
    if ((status)); then
        fail "${metrics%% *} $( ((status == 124)) && echo 'hung' || echo "failed (exit code $status)")"
        return 1
    fi
    read -ra values <"$W/out"
    for metric in $metrics; do
        [[ $metric == - ]] || record "$metric" "${values[0]}"
        values=("${values[@]:1}")
    done
}

# The same after everything was forgotten.
measure_cold() { # METRICS COMMAND...
    cold || { fail "did not come back for ${1%% *}"; return 1; }
    measure "$@"
}

random() { # read|write
    fio --name=random --filename="$L/large" --allow_file_create=0 --rw="rand$1" --bs=4k --size="${MIB}M" \
        --io_size="$((MIB / 4))M" --runtime=30 --ioengine=psync --end_fsync=1 --output-format=json |
        jq ".jobs[0].$1.iops | floor"
}

small_items() {
    local items=$L/items
    mkdir "$items" &&
        measure 'create create_p50 create_p99' ops create "$items" "$ITEMS" 1 &&
        flush &&
        measure - ops read "$items" "$ITEMS" 1 &&
        measure 'read_warm read_warm_p50 read_warm_p99' ops read "$items" "$ITEMS" 1 &&
        measure 'read_warm_4' ops read "$items" "$ITEMS" 4 &&
        measure '- read_evicted_p50 read_evicted_p99' ops readevicted "$items" "$ITEMS" 1 &&
        measure_cold 'read_cold read_cold_p50 read_cold_p99' ops read "$items" "$ITEMS" 1 &&
        measure_cold stat_cold ops stat "$items" "$ITEMS" 1 &&
        measure stat_warm ops stat "$items" "$ITEMS" 1 &&
        measure_cold ls_cold ops time ls -l "$items" &&
        measure ls_warm ops time ls -l "$items" &&
        measure 'replace replace_p50 replace_p99' ops replace "$items" "$((ITEMS / 4))" 1 &&
        measure unlink ops unlink "$items" "$ITEMS" 1
}

# Several processes: what all of them do in a second, and what a small read takes beside a large transfer.
company() {
    local items=$L/company
    mkdir "$items" "$items"/{mixed,read} &&
        measure mixed ops mixed "$items/mixed" "$((ITEMS / 5))" 8 &&
        measure - ops create "$items/read" "$((ITEMS / 20))" 1 &&
        measure 'beside_p50 beside_p99' ops beside "$items/read" "$((ITEMS / 20))" "$L/beside" "$BESIDE" &&
        rm -r "$items" "$L/beside"
}

# What a daemon that has done all this holds, and how long it takes until a store that is not new is mounted.
remounted() {
    [[ $peer != plain && $peer != limit ]] || return 0
    detach || { fail 'did not unmount'; return 1; }
    record memory_end "$(cat "$W/memory-end")"
    flush
    local start=$EPOCHREALTIME end
    attach || { fail 'did not mount again'; return 1; }
    end=$EPOCHREALTIME
    record mount "$(((${end/./} - ${start/./}) / 1000))"
}

# A decision by itself; nothing of it is on a disk.
decisions() {
    [[ $peer == kmsfs ]] || return 0
    local status=0
    mkdir "$W/memory-fs"
    mount -t tmpfs tmpfs "$W/memory-fs" || return 1
    measure 'decide_remembered decide_anew' decide "$W/memory-fs" || status=1
    umount "$W/memory-fs"
    rmdir "$W/memory-fs"
    return "$status"
}

synced_items() {
    local items=$L/synced
    mkdir "$items" "$items"/{1,4} &&
        flush &&
        measure 'createsync createsync_p50 createsync_p99' ops createsync "$items/1" "$((ITEMS / 20))" 1 &&
        measure 'createsync_4' ops createsync "$items/4" "$((ITEMS / 10))" 4
}

large_file() {
    measure stream_write ops write "$L/large" "$MIB" &&
        measure_cold stream_cold ops scan "$L/large" "$MIB" &&
        measure stream_warm ops scan "$L/large" "$MIB" &&
        measure_cold random_read random read &&
        measure random_write random write
}

source_tree() {
    mkdir "$L/tree" &&
        cat "$W/tree.tar" >/dev/null &&
        measure untar ops time tar -x -C "$L/tree" -f "$W/tree.tar" &&
        measure remove ops time rm -r "$L/tree"
}

# One round of one file system, on a store of its own.
run_one() {
    S=$W/store M=$W/mount L=$W/mount/load deadline=$((SECONDS + 8 * LIMIT))
    [[ $peer != plain ]] || L=$S/load
    rm -rf --one-file-system "$W/memory" "$S" "$W/anchor"
    mkdir -p "$S" "$M"
    : >"$W/log"
    say "$mode, round $round: $peer"
    if [[ $peer != plain ]] && ! command -v "${peer%%-*}" >/dev/null; then
        fail 'not installed'
    elif ! bounded 60 make >>"$W/log" 2>&1; then
        fail 'no store could be made'
    elif ! attach; then
        fail 'did not mount'
    elif ! bounded 30 prepare >>"$W/log" 2>&1; then
        fail 'nothing could be made in it'
    elif ! bounded 30 in_force >>"$W/log" 2>&1; then
        fail 'its policy or its trail is not in force'
    elif small_items && synced_items && company && large_file && source_tree && remounted; then
        if ! detach; then
            fail 'did not unmount'
        elif [[ -s $W/memory ]]; then
            record memory "$(sort -n "$W/memory" | tail -n 1)"
        fi
        decisions || true
    fi
    abort
    rm -rf --one-file-system "$S"
    flush
}

# So many items that whatever looked at each would show.
many_items() {
    peer=kmsfs mode='as-is' round=1 S=$W/store M=$W/mount L=$W/mount/load deadline=$((SECONDS + 7200))
    local LIMIT=3600
    rm -rf --one-file-system "$W/memory" "$S" "$W/anchor"
    mkdir -p "$S" "$M"
    : >"$W/log"
    say "$MANY items"
    if bounded 60 make >>"$W/log" 2>&1 && attach && bounded 30 prepare >>"$W/log" 2>&1; then
        measure - ops create "$L" "$MANY" 1 && cold && detach && flush && echo 3 >/proc/sys/vm/drop_caches
        local start=$EPOCHREALTIME end
        if attach; then
            end=$EPOCHREALTIME
            record mount_many "$(((${end/./} - ${start/./}) / 1000))"
        fi
        detach || fail 'did not unmount'
    fi
    abort
    rm -rf --one-file-system "$S"
}

inside() { # ROUNDS MODES FILE-SYSTEM...
    local rounds=$1 modes=$2 cores number mode round peer
    shift 2
    local all=("$@")
    trap 'exit 130' INT TERM HUP
    export PATH="$W/bin:$PATH" KMSFS_ANCHOR="$W/anchor"
    unset RUST_LOG KMSFS_AT
    echo password >"$W/password"
    mkdir "$W/tree"
    ops tree "$W/tree" "$SOURCES"
    tar -c -C "$W/tree" --sort=name --owner=0 --group=0 --mtime=@0 -f "$W/tree.tar" .
    rm -r "$W/tree"
    cores=$(taskset -pc $$ | sed 's/.*: //')
    for ((round = 1; round <= rounds; round++)); do
        for mode in $modes; do
            # The daemon and whatever works for it inherit this.
            taskset -pc "$([[ $mode == pinned ]] && echo "$CPU" || echo "$cores")" $$ >/dev/null
            for number in "${!all[@]}"; do
                # Each round begins with another one, so that none has the best place always.
                peer=${all[(number + round - 1) % ${#all[@]}]}
                run_one
            done
        done
    done
    taskset -pc "$cores" $$ >/dev/null
    ((MANY == 0)) || many_items
}

if [[ ${1-} == --inside ]]; then inside "${@:2}"; else outside "$@"; fi
