#!/bin/sh
# Spark needs Java. Where it is missing, install Debian's if that is possible; else say what to do, and fail.
# Usage: install_java.sh PYTHON-OF-THE-VIRTUAL-ENVIRONMENT
check='
import sys
from dare_core.errors import ProgramMissingError
from dare_core.sources.spark_submit import require_java
try:
    require_java()
except ProgramMissingError as error:
    sys.exit(str(error))
'
"$1" -c "$check" 2>/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    exec 9<"$(dirname "$0")"
    flock 9 # apt-get does not wait for another one
    echo "installing Java for Spark"
    apt-get update -qq
    for version in 17 21; do
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "openjdk-$version-jre-headless" >/dev/null 2>&1 && break
    done
fi
exec "$1" -c "$check"
