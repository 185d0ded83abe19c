#!/bin/sh
# tests/newer.sh PACKAGE...: programs of Debian's unstable, for servers that are newer than the machine's own.
#
# They need their own libc, so they get a root of their own, which stays: /var/cache/legacy_poll/unstable, or
# LEGACY_POLL_UNSTABLE. tests/servers.py runs them outside of it, by its loader. Root on Debian only, since debootstrap
# and chroot need it; elsewhere this says so and does nothing, and the tests that need such a server say what is missing.
set -eu

root=${LEGACY_POLL_UNSTABLE:-/var/cache/legacy_poll/unstable}
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1

look() {
    missing=
    for package; do
        ls "$root/var/lib/dpkg/info/$package.list" "$root/var/lib/dpkg/info/$package":*.list 2>/dev/null | grep -q . ||
            missing="$missing $package"
    done
}

look "$@"
test -n "$missing" || exit 0

if test "$(id -u)" != 0 || ! command -v apt-get >/dev/null; then
    echo "not installed, so skipped:$missing of Debian's unstable (needs root on Debian)"
    exit 0
fi

# One at a time: two checkouts may share the root.
mkdir -p "$(dirname "$root")"
exec 9>"$root.lock"
flock 9

say() {
    echo "Debian's unstable: $1"
}

inside() {
    # Its Release file may be weeks old where a mirror is slow.
    chroot "$root" apt-get -qq -o Acquire::Check-Valid-Until=false "$@"
}

log=$root.log
failed() {
    tail -n 20 "$log"
    say "not to be had, so skipped:$missing"
    exit 0
}

if ! test -d "$root"; then
    say "making $root (once; about a minute, 700 MB)"
    command -v debootstrap >/dev/null || apt-get install -qq --no-install-recommends debootstrap >"$log" 2>&1 || {
        apt-get update -qq && apt-get install -qq --no-install-recommends debootstrap
    } >"$log" 2>&1 || failed
    # The mirror that apt takes Debian's own packages from.
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "Debian" && $2 !~ /-/ { print $3; exit }')
    # By another name until it is whole.
    rm -rf "$root.half"
    debootstrap --variant=minbase sid "$root.half" $mirror >"$log" 2>&1 || failed
    chmod 0755 "$root.half"
    mv "$root.half" "$root"
fi
say "installing$missing"
{ inside update && inside install -y --no-install-recommends $missing; } >"$log" 2>&1 </dev/null || {
    # What sets up a package may miss a running system; the programs are there all the same.
    look "$@"
    test -z "$missing" || failed
}
