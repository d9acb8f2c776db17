#!/usr/bin/env bash
# Installs what is missing and runs every test there is. The last line is 'N passed, N failed'; the exit code is 0 if
# none failed.
#
#   tests/run.sh            everything that a change must pass
#   tests/run.sh --long     and more of it: more property cases, longer fuzzing, the ignored tests, fsx with 10 seeds of
#                           100,000 operations
#
# Needs root, /dev/fuse and, to install, Debian's apt. A run takes some minutes.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TERM_COLOR=never LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
long=0
for argument in "$@"; do
    case $argument in
        --long) long=1 ;;
        *) echo "usage: $0 [--long]" >&2; exit 2 ;;
    esac
done

passed=0
failed=0
failures=()
logs=$(mktemp -d)

finish() {
    local status=$?
    rm -rf "$logs"
    ((status == 0)) || { failed=$((failed + 1)); failures+=("the run itself ended early"); }
    if ((${#failures[@]})); then
        printf '\nFailed:\n'
        printf '  %s\n' "${failures[@]}"
    fi
    printf '%d passed, %d failed\n' "$passed" "$failed"
    ((failed == 0)) || exit 1
}
trap finish EXIT
trap 'exit 130' INT TERM

say() { printf '\n== %s\n' "$*"; }
pass() { passed=$((passed + $1)); }
fail() { failed=$((failed + 1)); failures+=("$*"); echo "FAILED: $*"; }

# --- what is needed ----------------------------------------------------------------------------------------------

# Commands that must be there, and the packages that have them.
needs=(
    fusermount3:fuse3 bats:bats jq:jq setfacl:acl setfattr:attr vim:vim nano:nano sponge:moreutils script:bsdutils
    unshare:util-linux setpriv:util-linux findmnt:util-linux losetup:mount mkfs.ext4:e2fsprogs mkfs.btrfs:btrfs-progs cc:build-essential ps:procps
    shellcheck:shellcheck git:git sqlite3:sqlite3 rsync:rsync systemd-analyze:systemd
)

install_missing() {
    local need packages=()
    for need in "${needs[@]}"; do
        command -v "${need%%:*}" >/dev/null || packages+=("${need#*:}")
    done
    [[ -e /usr/share/iso-codes/json/iso_3166-1.json ]] || packages+=(iso-codes)
    new_enough || packages+=(rustc-web cargo-web rust-web-clippy rustfmt-web ca-certificates)
    if ((${#packages[@]})); then
        say "installing ${packages[*]}"
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    fi
    unpack_postgresql
}

# Its package would make an account, and start a server at once and at every boot. So its programs alone are unpacked,
# into target/, and only the libraries that they need are installed.
unpack_postgresql() {
    local program installed=(/usr/lib/postgresql/*/bin/initdb target/postgresql/usr/lib/postgresql/*/bin/initdb)
    local package libraries
    for program in "${installed[@]}"; do [[ ! -x $program ]] || return 0; done
    say 'unpacking PostgreSQL'
    apt-get update -qq
    package=$(apt-cache depends postgresql | sed -n 's/^ *Depends: \(postgresql-[0-9]*\)$/\1/p' | head -n1)
    # libllvm: only for compiling queries, which tests do not.
    mapfile -t libraries < <(apt-cache depends "$package" "postgresql-client-${package##*-}" |
        sed -n 's/^ *Depends: \(lib[^ <>]*\)$/\1/p' | grep -v '^libllvm' | sort -u)
    apt-get install -y -qq --no-install-recommends tzdata "${libraries[@]}" >/dev/null
    mkdir -p "$logs/debs" target/postgresql
    (cd "$logs/debs" && apt-get download -qq -o APT::Sandbox::User=root "$package" "postgresql-client-${package##*-}")
    for package in "$logs"/debs/*.deb; do dpkg-deb --extract "$package" target/postgresql; done
}

# Suites of others, and the versions that are known to be what they should be; they stay in target/tools.
tools=(pjdfstest:0.2.2 fsx:0.3.2)

install_tools() {
    local tool name version
    for tool in "${tools[@]}"; do
        name=${tool%%:*} version=${tool#*:}
        grep -qsF "\"$name $version (" target/tools/.crates.toml && [[ -x target/tools/bin/$name ]] && continue
        say "installing $name $version"
        timeout --kill-after=10 1200 cargo install --quiet --locked --root target/tools --version "$version" "$name" ||
            fail "installing $name $version"
    done
}

# The compiler that Cargo.toml asks for.
new_enough() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(cargo --version 2>/dev/null | cut -d' ' -f2)
    [[ -n $found && $(printf '%s\n' "$wanted" "$found" | sort -V | head -n1) == "$wanted" ]]
}

# --- the steps ---------------------------------------------------------------------------------------------------

# A step that counts as one test.
check() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2
    shift 2
    say "$name"
    if timeout --kill-after=10 "$seconds" "$@" >"$logs/step" 2>&1; then
        pass 1
    else
        tail -n 100 "$logs/step"
        fail "$name"
    fi
}

# Cargo's tests, each of which counts.
cargo_tests() { # NAME SECONDS CARGO-TEST-ARGUMENTS...
    local name=$1 seconds=$2 status=0 ok bad
    shift 2
    say "$name"
    timeout --kill-after=10 "$seconds" cargo test --no-fail-fast "$@" >"$logs/step" 2>&1 || status=$?
    ok=$(awk '/^test result:/ { n += $4 } END { print n + 0 }' "$logs/step")
    bad=$(awk '/^test result:/ { n += $6 } END { print n + 0 }' "$logs/step")
    pass "$ok"
    echo "$ok passed, $bad failed"
    if ((status)); then
        grep -vE '^test .* \.\.\. ok$' "$logs/step" | tail -n 200
        while IFS= read -r line; do fail "$name: $line"; done < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$logs/step")
        # Also what is no failed test: it does not build, it was killed, it ran out of time.
        ((bad > 0)) || fail "$name (exit code $status)"
    elif ((ok == 0)); then
        fail "$name: no test ran"
    fi
}

# One suite of shell tests, on real mounts.
shell_tests() { # FILE
    local file=$1 name status=0 ok bad planned
    name=$(basename "$file")
    say "$name"
    BATS_TEST_TIMEOUT=$((long ? 7200 : 400)) timeout --kill-after=20 $((long ? 10000 : 900)) tests/shell/namespace.sh bats --tap "$file" >"$logs/step" 2>&1 ||
        status=$?
    planned=$(bats --count "$file")
    ok=$(grep -cE '^ok ' "$logs/step" || true)
    bad=$(grep -cE '^not ok ' "$logs/step" || true)
    pass "$((ok - $(grep -cE '^ok .* # skip' "$logs/step" || true)))"
    grep -E '^ok .* # skip' "$logs/step" || true
    while IFS= read -r line; do fail "$name: $line"; done < <(sed -nE 's/^not ok [0-9]+ //p' "$logs/step")
    if ((ok + bad != planned)); then
        fail "$name: $((planned - ok - bad)) of $planned tests did not run (exit code $status)"
    elif ((status && !bad)); then
        fail "$name (exit code $status)"
    fi
    echo "$ok passed, $bad failed"
    ((status == 0 && ok + bad == planned)) || tail -n 300 "$logs/step"
}

[[ $(id -u) == 0 ]] || { fail 'these tests must be run as root: they mount, and act as several users'; exit 0; }
install_missing
install_tools

check 'formatting' 120 cargo fmt --check
check 'clippy' 900 cargo clippy --all-targets --all-features -- -D warnings
check 'shellcheck' 120 shellcheck -x -P tests/shell tests/run.sh .ci/run tests/shell/*.sh tests/shell/*.bash tests/volumes/*.sh mount-examples/*.sh bench/run.sh
if ((long)); then
    export PROPTEST_CASES=${PROPTEST_CASES:-2000} KMSFS_FUZZ_SECONDS=${KMSFS_FUZZ_SECONDS:-20}
    export KMSFS_FSX_SEEDS=${KMSFS_FSX_SEEDS:-10} KMSFS_FSX_OPERATIONS=${KMSFS_FSX_OPERATIONS:-100000}
    cargo_tests 'cargo tests' 3600 --features testing -- --include-ignored
else
    cargo_tests 'cargo tests' 900 --features testing
fi
cargo_tests 'cryptography without aws-lc' 600 --no-default-features --lib crypto::
if [[ -e tests/vectors.rs ]]; then
    cargo_tests 'vectors without aws-lc' 600 --no-default-features --test vectors
fi
check 'release build' 900 cargo build --release

if [[ -c /dev/fuse ]]; then
    for suite in tests/shell/*.bats; do shell_tests "$suite"; done
else
    fail 'no /dev/fuse: nothing could be mounted, and no shell test has run'
fi
