"""OpenStack Swift with its S3 API on loopback, in one process: one device, one copy of everything, one user.

A program for the Python that Debian's package ``python3-swift`` belongs to, which is not the tests' own:
``/usr/bin/python3 swift_server.py FOLDER ACCESS_KEY SECRET_KEY``. It prints the port that it answers on, once it does,
and ends with its standard input. Nothing is kept but what lies in FOLDER.
"""

import logging
import os
import sys
from pathlib import Path

import eventlet

eventlet.monkey_patch()

from eventlet import wsgi  # noqa: E402
from swift.common import utils  # noqa: E402
from swift.common.http_protocol import SwiftHttpProtocol  # noqa: E402
from swift.common.ring import RingBuilder  # noqa: E402
from swift.common.wsgi import loadapp  # noqa: E402

HOST = "127.0.0.1"
BACKENDS = ("account", "container", "object")

# A server that is starved of processor time is slow, not broken: an object is listed before its PUT is answered,
# however long that takes.
BACKEND = """\
[DEFAULT]
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
log_level = ERROR
log_custom_handlers = swift_server.log_to_stderr
[app:main]
use = egg:swift#{name}
conn_timeout = 60
node_timeout = 60
container_update_timeout = 60
"""
PROXY = """\
[DEFAULT]
swift_dir = {folder}
log_level = ERROR
log_custom_handlers = swift_server.log_to_stderr
[pipeline:main]
pipeline = catch_errors proxy-logging cache s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
conn_timeout = 60
node_timeout = 60
error_suppression_limit = 1000000
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:cache]
paste.filter_factory = swift_server:remembering
[filter:s3api]
use = egg:swift#s3api
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user} = {secret} .admin
[filter:slo]
use = egg:swift#slo
"""


def log_to_stderr(conf, name, to_console, route, form, logger, adapted):
    """Swift would log to syslog alone."""
    logger.addHandler(logging.StreamHandler())


class Memory:
    """What memcached would hold, in this process; nothing expires while tests last."""

    def __init__(self):
        self._kept = {}

    def get(self, key, **options):
        return self._kept.get(key)

    def set(self, key, value, **options):
        self._kept[key] = value

    def delete(self, key, **options):
        self._kept.pop(key, None)


def remembering(global_conf, **conf):
    """A filter that gives the proxy its memory."""
    memory = Memory()

    def filtered(app):
        def call(environment, start_response):
            environment["swift.cache"] = memory
            return app(environment, start_response)

        return call

    return filtered


def main():
    """Make the configuration, serve, and end when nobody holds our standard input any more."""
    folder, access_key, secret = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    account, _, user = access_key.partition(":")
    (folder / "devices" / "disk").mkdir(parents=True)
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = tests\n")
    utils.set_swift_dir(str(folder))
    sockets = {name: eventlet.listen((HOST, 0)) for name in (*BACKENDS, "proxy")}
    for name in BACKENDS:
        ring = RingBuilder(part_power=1, replicas=1, min_part_hours=0)
        port = sockets[name].getsockname()[1]
        ring.add_dev({"region": 1, "zone": 1, "weight": 1, "ip": HOST, "port": port, "device": "disk"})
        ring.rebalance()
        ring.get_ring().save(str(folder / f"{name}.ring.gz"))
    for name, listening in sockets.items():
        file = folder / f"{name}.conf"
        text = PROXY if name == "proxy" else BACKEND
        file.write_text(text.format(folder=folder, name=name, account=account, user=user, secret=secret))
        app = loadapp(str(file), {"log_name": name})
        eventlet.spawn(
            wsgi.server, listening, app, log_output=False, debug=False,
            protocol=SwiftHttpProtocol, capitalize_response_headers=False,
        )  # fmt: skip
    print(sockets["proxy"].getsockname()[1], flush=True)
    eventlet.tpool.execute(sys.stdin.buffer.read)
    os._exit(0)


if __name__ == "__main__":
    main()
