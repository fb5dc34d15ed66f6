#!/bin/sh
# The local cluster needs redis-server. Where it is missing, install Debian's if that is possible; else say so, and fail.
# Debian's package would start a server of its own, without a password; a policy file keeps it from doing so.
command -v redis-server >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing Redis for the local cluster"
    apt-get update -qq
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y redis-server >/dev/null 2>&1
fi
command -v redis-server >/dev/null && exit 0
echo "the local cluster needs redis-server; install it: sudo apt-get install redis-server (macOS: brew install redis)" >&2
exit 1
