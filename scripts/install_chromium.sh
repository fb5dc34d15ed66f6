#!/bin/sh
# The browser test drives a Chromium of the system. Where none is found, install Debian's if that is possible; else say
# what to do. The tests run without it; the one that needs it is skipped then.
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing Chromium for the browser test"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null 2>&1 && exit 0
fi
echo "no Chromium was found, so the browser test is skipped; on Debian: apt-get install chromium" >&2
