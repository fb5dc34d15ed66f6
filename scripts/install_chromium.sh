#!/bin/sh
# The browser test drives a Chromium of the system. Where none is found, install Debian's if that is possible; else say
# what to do. The tests run without it; the one that needs it is skipped then.
there() {
    command -v chromium || command -v chromium-browser || command -v google-chrome
}
there >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    exec 9<"$(dirname "$0")"
    flock 9 # apt-get does not wait for another one
    there >/dev/null && exit 0
    echo "installing Chromium for the browser test"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null 2>&1 && exit 0
fi
echo "no Chromium was found, so the browser test is skipped; on Debian: apt-get install chromium" >&2
