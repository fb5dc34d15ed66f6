#!/bin/sh
# Tests of object storage run against OpenStack Swift, which speaks S3 too. Where it is missing, install Debian's package if
# that is possible, its library alone: no service comes with it. Else say what to do. The tests run without it; those that
# need it are skipped then.
there() {
    /usr/bin/python3 -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("swift.proxy"))' 2>/dev/null
}
there && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    exec 9<"$(dirname "$0")"
    flock 9 # apt-get does not wait for another one
    there && exit 0
    echo "installing OpenStack Swift for tests of object storage"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3-swift >/dev/null 2>&1 && exit 0
fi
echo "no OpenStack Swift was found, so tests of object storage are skipped; on Debian: apt-get install python3-swift" >&2
