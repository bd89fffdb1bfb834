#!/bin/sh
# Starts Redis: `redis-server` (also when the first argument is an option) with this image's configuration unless
# another is given, anything else as it is. With LEADER set the server follows that host.
set -eu

case "${1:-redis-server}" in
-*) set -- redis-server "$@" ;;
esac

if [ "${1:-redis-server}" = redis-server ]; then
    [ $# -eq 0 ] || shift
    case "${1:-}" in
    "" | -*) set -- /etc/redis/redis.conf "$@" ;;
    esac
    if [ -n "${LEADER:-}" ]; then
        if [ "${GET_HOSTS_FROM:-dns}" = env ]; then
            # redis-leader is announced as REDIS_LEADER_SERVICE_HOST.
            variable="$(echo "$LEADER" | tr 'a-z-' 'A-Z_')_SERVICE_HOST"
            LEADER="$(printenv "$variable")"
        fi
        set -- "$@" --replicaof "$LEADER" 6379
    fi
    # Nobody but redis should own what it writes; as another user than root there is nothing to change.
    if [ "$(id -u)" = 0 ]; then
        chown redis:redis /data
        exec chroot --userspec=redis:redis --skip-chdir / redis-server "$@"
    fi
    exec redis-server "$@"
fi
exec "$@"
