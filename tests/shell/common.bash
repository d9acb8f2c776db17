# What the suites share. Each suite is run by tests/shell/namespace.sh: as root, in namespaces of its own, with the
# accounts alice, bob, carol, dora and erin. Each test gets a new store, mounted at $MNT.
# shellcheck shell=bash disable=SC2034,SC2119,SC2120

bats_require_minimum_version 1.5.0

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
KMSFS=${KMSFS:-$ROOT/target/release/kmsfs}
EACCES='Permission denied'
EPERM='Operation not permitted'
ENOENT='No such file or directory'
EINVAL='Invalid argument'
EXDEV='Invalid cross-device link'
EROFS='Read-only file system'
EBADMSG='Bad message'
EUCLEAN='Structure needs cleaning'
ENOTCONN='Transport endpoint is not connected'

# --- life of a test ---------------------------------------------------------------------------------------------

setup_file() {
    [[ ${KMSFS_PRIVATE_NAMESPACE-} == 1 ]] || {
        echo "run this through tests/shell/namespace.sh: it makes accounts and mounts that must stay private" >&2
        return 1
    }
    [[ -c /dev/fuse ]] || { echo "no /dev/fuse: nothing can be mounted here" >&2; return 1; }
    [[ -x $KMSFS ]] || { echo "no $KMSFS: cargo build --release" >&2; return 1; }
    mkdir -p "$KMSFS_TEST_DIR/bin"
    cp "$KMSFS" "$KMSFS_TEST_DIR/bin/kmsfs"
    cc -O1 -Wall -Wextra -Werror -o "$KMSFS_TEST_DIR/bin/probe" "$ROOT/tests/shell/helpers/probe.c"
    chmod 755 "$KMSFS_TEST_DIR/bin" "$KMSFS_TEST_DIR"/bin/*
}

setup() {
    new_paths
    start_store
    mount_store
}

# Puts a program that tests/run.sh installs where every user may run it.
install_tool() { # NAME
    local tool=$ROOT/target/tools/bin/$1
    [[ -x $tool ]] || { echo "no $tool: tests/run.sh installs it"; return 1; }
    install -m 755 "$tool" "$KMSFS_TEST_DIR/bin/"
}

# Names for a test's own store, without making one.
new_paths() {
    T=$(mktemp -d "$KMSFS_TEST_DIR/t.XXXXXX")
    chmod 755 "$T"
    STORE=$T/store MNT=$T/mnt LOG=$T/daemon.log KEYFILE=$T/key EXPECTED_LOG=$T/expected-log
    export PATH="$KMSFS_TEST_DIR/bin:$PATH" KMSFS_AT=$MNT KMSFS_ANCHOR=$T/anchor HOME=$KMSFS_TEST_DIR/home/root
    export RUST_BACKTRACE=1
    unset RUST_LOG
    mkdir -p "$MNT" "$KMSFS_ANCHOR" "$HOME"
    chmod 700 "$KMSFS_ANCHOR"
    : >"$EXPECTED_LOG"
    (umask 077 && head -c 64 /dev/urandom >"$KEYFILE")
}

# Unmounts as soon as those who held it open are gone; they have just been told to go. After a failed test this runs in a
# trap, where a return without a number would give the status from before.
umount_when_idle() {
    local try
    for ((try = 0; try < 50; try++)); do
        # With its status: after a failed test bats calls this in a trap, where a bare `return` gives the failure's.
        bounded 30 umount "$MNT" 2>/dev/null && return 0
        sleep 0.1
    done
    return 1
}

teardown() {
    local failed=0
    [[ ${BATS_TEST_COMPLETED-} == 1 ]] || failed=1
    let_go
    touch "$T/stop"
    cd /
    if mountpoint -q "$MNT" 2>/dev/null || is_stale "$MNT"; then
        # A mount that does not come off is a failure, and must not take the rest of the suite with it.
        if ! umount_when_idle; then
            abort_mount
            umount -l "$MNT" || true
            echo "# the mount had to be aborted"
            failed=1
        fi
    fi
    daemon_gone 30 || { kill_daemon; echo "# the daemon had to be killed"; failed=1; }
    local unexpected
    unexpected=$(unexpected_log_lines)
    if [[ -n $unexpected ]]; then
        printf '# unexpected in the log:\n%s\n' "$unexpected"
        failed=1
    fi
    if ((failed)); then
        echo "# --- the daemon's log:"
        tail -n 200 "$LOG" 2>/dev/null || echo "# (none)"
    fi
    rm -rf --one-file-system "$T"
    return "$failed"
}

# --- store and mount --------------------------------------------------------------------------------------------

start_store() { # [INIT OPTION]...
    kmsfs init "$STORE" --key-file "$KEYFILE" "$@"
}

mount_store() { # [MOUNT OPTION]...
    # 3 is bats' own descriptor: whoever keeps it keeps bats from ending.
    bounded 30 kmsfs mount "$STORE" "$MNT" --key-file "$KEYFILE" --log-file "$LOG" "$@" 3>&-
}

umount_store() {
    bounded 60 kmsfs umount "$MNT"
}

remount_store() { # [MOUNT OPTION]...
    umount_store
    mount_store "$@"
}

# The table of most tests: alice is its key user, she and bob have every Unix right, carol administers the key.
orders() {
    kmsfs key create orders --admin carol --admin root --user alice
    kmsfs table create orders --key orders --owner alice --group finance --mode 2770
    as alice item orders/1001.json '{"order": 1001, "total": "12.50"}'
}

# Writes an item with one line of content; run it through `as`.
item() { # PATH-IN-MOUNT TEXT
    (umask 007 && printf '%s\n' "$2" >"$MNT/$1")
}

KEY_DIR() { echo "$MNT/.kms/keys/${1:-orders}"; }

# A key's policy with some jq applied.
policy_with() { # KEY JQ-FILTER
    jq "$2" "$MNT/.kms/keys/$1/policy.json"
}

# The jq filter that adds a principal to the key users, or takes it out.
adding() { echo "(.Statement[] | select(.Sid == \"Key users\") | .Principal.Unix) += [\"$1\"]"; }
removing() { echo "(.Statement[] | select(.Sid == \"Key users\") | .Principal.Unix) -= [\"$1\"]"; }

# --- processes --------------------------------------------------------------------------------------------------

# Runs a command, or a function of this file, as another user with that user's own groups.
as() { # USER COMMAND [ARGUMENT]...
    local user=$1
    shift
    if [[ $(type -t "$1") == function ]]; then
        set -- bash -c "$(declare -f "$1"); \"\$@\"" as "$@"
    fi
    MNT=$MNT T=$T HOME=$KMSFS_TEST_DIR/home/$user USER=$user LOGNAME=$user \
        bounded "${AS_LIMIT:-120}" setpriv --reuid="$user" --regid="$user" --init-groups -- "$@"
}

# Runs a command that must end in time.
bounded() { # SECONDS COMMAND...
    local seconds=$1
    shift
    timeout --kill-after=2 "$seconds" "$@"
}

BACKGROUND=()

# Runs a command in the background, without bats' own descriptor; `await` waits for all of them and for no other job,
# since bats' time limit is one too.
background() { # COMMAND...
    "$@" 3>&- &
    BACKGROUND+=("$!")
}

await() {
    local status=0
    wait "${BACKGROUND[@]}" || status=$?
    BACKGROUND=()
    return "$status"
}

# Waits until a command succeeds.
wait_until() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || { echo "still not so: $*" >&2; return 1; }
        sleep 0.05
    done
}

daemon_pid() { awk '{ print $1; exit }' "$STORE/lock"; }

# Asks /proc, where the process may be gone between any two questions.
daemon_runs() {
    local pid status
    pid=$(daemon_pid 2>/dev/null) || return 1
    [[ -n $pid ]] || return 1
    status=$(cat "/proc/$pid/status" 2>/dev/null) || return 1
    [[ $status =~ Name:[[:space:]](kmsfs|mount\.) && ! $status =~ State:[[:space:]]+[ZX] ]]
}

daemon_gone() { # SECONDS
    local end=$((SECONDS + $1))
    while daemon_runs; do
        ((SECONDS < end)) || return 1
        sleep 0.02
    done
}

kill_daemon() {
    local pid
    daemon_runs || return 0
    pid=$(daemon_pid)
    kill -9 "$pid"
    daemon_gone 10
}

# By statfs, which the kernel answers from no cache.
is_stale() { ! stat -f "$1" >/dev/null 2>"$T/stale" && grep -q "$ENOTCONN" "$T/stale"; }

# Ends a mount that hangs: every request on it fails.
abort_mount() {
    local number
    number=$(awk -v mnt="$MNT" '$5 == mnt { split($3, device, ":"); print device[2] }' /proc/self/mountinfo | tail -n1)
    [[ -z $number ]] || echo 1 >"/sys/fs/fuse/connections/$number/abort"
}

# --- a terminal ---------------------------------------------------------------------------------------------------

# Runs a shell command as a user on a terminal of its own; then `sees` waits for what it shows, `types` presses keys
# and `leaves` waits for its end.
terminal() { # USER SHELL-COMMAND
    local pipe
    SCREEN=$(mktemp "$T/screen.XXXXXX") pipe=$(mktemp -u "$T/keys.XXXXXX")
    chmod 666 "$SCREEN"
    mkfifo "$pipe"
    TERM=xterm as "$1" script --quiet --flush --return --command "stty rows 30 cols 200; $2" "$SCREEN" <"$pipe" >/dev/null 3>&- &
    TERMINAL=$!
    exec {KEYS}>"$pipe"
}

sees() { # EXTENDED-REGEX [HOW-OFTEN]
    wait_until 30 screen_has "$1" "${2-1}"
}

screen_has() { (($(grep -aoE "$1" "$SCREEN" | wc -l) >= $2)); }

types() { # KEYS, as printf(1) escapes them
    # A child writes: the signal of a broken pipe must not end the test.
    (printf '%b' "$1" >&"$KEYS") 2>/dev/null || true
}

leaves() {
    local status=0
    wait_until 30 not kill -0 "$TERMINAL" || kill "$TERMINAL"
    wait "$TERMINAL" || status=$?
    exec {KEYS}>&-
    return "$status"
}

# --- expectations -----------------------------------------------------------------------------------------------

# The command must fail, and its output must hold the text (an errno's, from above, or any other).
fails_with() { # TEXT COMMAND...
    local text=$1 output status=0
    shift
    output=$("$@" 2>&1 </dev/null) || status=$?
    if ((status == 0)); then
        printf 'succeeded: %s\n%s\n' "$*" "$output"
        return 1
    fi
    if [[ $output != *"$text"* ]]; then
        printf 'failed (%d), but not with "%s": %s\n%s\n' "$status" "$text" "$*" "$output"
        return 1
    fi
}

# The command must end with just this exit code.
exits_with() { # CODE COMMAND...
    local wanted=$1 status=0
    shift
    "$@" || status=$?
    ((status == wanted)) || { echo "exit code $status, not $wanted: $*"; return 1; }
}

equal() { # FOUND WANTED
    [[ $1 == "$2" ]] || { printf 'found  %q\nwanted %q\n' "$1" "$2"; return 1; }
}

# The command must fail: bash lets `! command` pass unnoticed.
not() { # COMMAND...
    if "$@"; then
        echo "succeeded: $*"
        return 1
    fi
}

# Standard input must not hold the text.
lacks() { # TEXT
    local found
    found=$(grep -aF -- "$1") || return 0
    printf 'found: %s\n' "$found"
    return 1
}

# Lines of the daemon's log that match are no failure of this test.
expect_log() { # EXTENDED-REGEX
    printf '%s\n' "$1" >>"$EXPECTED_LOG"
}

# What the mount after a kill says.
expect_unclean_stop() {
    expect_log 'did not end in good order|journal was replayed|after an unclean stop|unfinished record'
}

unexpected_log_lines() {
    grep -hE '^\[[^]]* (WARN|ERROR) |panicked at' "$LOG" 2>/dev/null | grep -vEf "$EXPECTED_LOG" || true
}

# --- a helper that keeps files open --------------------------------------------------------------------------------

# Starts `probe hold` as a user, on its own file descriptors; then `ask read` makes it read its file from the start
# and prints what it got, or the name of the error.
hold() { # USER MODE PATH
    local user=$1
    shift
    start_holder as "$user" probe hold "$@"
}

# The same with a descriptor that the user opened and handed to root.
hold_passed() { # USER PATH
    start_holder bounded 120 probe pass "$(id -u "$1")" "$(id -g "$1")" "$2"
}

HELD=() HOLDERS=()

start_holder() { # COMMAND...
    local pipes
    pipes=$(mktemp -d "$T/hold.XXXXXX")
    mkfifo "$pipes/ask" "$pipes/answer"
    "$@" <"$pipes/ask" >"$pipes/answer" 3>&- &
    exec {ASK}>"$pipes/ask" {ANSWER}<"$pipes/answer"
    HELD+=("$ASK" "$ANSWER")
    # Its pid, or what kept it from opening.
    HOLDER=$(ask pid)
    [[ $HOLDER =~ ^[0-9]+$ ]] || { echo "$HOLDER"; return 1; }
    HOLDERS+=("$HOLDER")
}

# Ends all holders.
let_go() {
    local fd
    for fd in ${HELD[@]+"${HELD[@]}"}; do
        exec {fd}>&-
    done
    ((${#HOLDERS[@]} == 0)) || kill -9 "${HOLDERS[@]}" 2>/dev/null || true
    HELD=() HOLDERS=()
}

ask() { # COMMAND
    local answer
    # A child writes: the signal of a broken pipe must not end the test.
    (echo "$1" >&"$ASK") 2>/dev/null || true
    IFS= read -r -t 20 -u "$ANSWER" answer || { echo "no answer to $1"; return 1; }
    printf '%s\n' "$answer"
}
