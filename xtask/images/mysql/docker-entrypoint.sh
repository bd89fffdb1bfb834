#!/bin/bash
# Starts the database server, on an empty data folder after filling it as the MYSQL_* variables say; any other
# command than the server is run as it is, so that the image serves as a client too.
#
# The folder is filled aside and moved into place at the end, the system tables last: a container killed at any
# moment finds either nothing or everything.
set -eu

DATADIR=/var/lib/mysql
STAGING=$DATADIR/.initialising

say() { echo "$(date -u +%FT%TZ) [Note] [Entrypoint]: $*"; }
fail() { echo "$(date -u +%FT%TZ) [ERROR] [Entrypoint]: $*" >&2; exit 1; }

# A value from NAME, or from the file that NAME_FILE names.
from_file() {
    local name=$1 file_name=$1_FILE
    if [ -n "${!file_name:-}" ]; then
        [ -z "${!name:-}" ] || fail "both $name and $file_name are set (but are exclusive)"
        printf -v "$name" '%s' "$(<"${!file_name}")"
        export "${name?}"
    fi
}

# An SQL string literal.
quoted() {
    local text=${1//\\/\\\\}
    printf "'%s'" "${text//\'/\'\'}"
}

# An SQL name.
named() { printf '`%s`' "${1//\`/\`\`}"; }

# The statements that make users and databases, one a line as the server's bootstrap mode wants them.
accounts() {
    local host=${MYSQL_ROOT_HOST-%} password user
    password=$(quoted "${MYSQL_ROOT_PASSWORD:-}")
    echo "DELETE FROM mysql.global_priv WHERE User IN ('', 'root');"
    echo "FLUSH PRIVILEGES;"
    echo "CREATE USER 'root'@'localhost' IDENTIFIED BY $password;"
    echo "GRANT ALL ON *.* TO 'root'@'localhost' WITH GRANT OPTION;"
    if [ -n "$host" ] && [ "$host" != localhost ]; then
        host=$(quoted "$host")
        echo "CREATE USER 'root'@$host IDENTIFIED BY $password;"
        echo "GRANT ALL ON *.* TO 'root'@$host WITH GRANT OPTION;"
    fi
    if [ -n "${MYSQL_DATABASE:-}" ]; then
        echo "CREATE DATABASE IF NOT EXISTS $(named "$MYSQL_DATABASE");"
    fi
    if [ -n "${MYSQL_USER:-}" ] && [ -n "${MYSQL_PASSWORD:-}" ]; then
        user=$(quoted "$MYSQL_USER")@"'%'"
        echo "CREATE USER $user IDENTIFIED BY $(quoted "$MYSQL_PASSWORD");"
        if [ -n "${MYSQL_DATABASE:-}" ]; then
            # In a grant the underscore is a wildcard.
            local database=${MYSQL_DATABASE//_/\\_}
            echo "GRANT ALL ON $(named "$database").* TO $user;"
        fi
    fi
    echo "FLUSH PRIVILEGES;"
}

initialise() {
    local share=/usr/share/mysql output
    if [ -z "${MYSQL_ROOT_PASSWORD:-}${MYSQL_ALLOW_EMPTY_PASSWORD:-}${MYSQL_RANDOM_ROOT_PASSWORD:-}" ]; then
        fail "Database is uninitialized and password option is not specified
    You need to specify one of the following as an environment variable:
    - MYSQL_ROOT_PASSWORD
    - MYSQL_ALLOW_EMPTY_PASSWORD
    - MYSQL_RANDOM_ROOT_PASSWORD"
    fi
    [ "${MYSQL_USER:-}" != root ] || fail "MYSQL_USER=\"root\": that user exists anyway"
    if [ -n "${MYSQL_RANDOM_ROOT_PASSWORD:-}" ]; then
        MYSQL_ROOT_PASSWORD=$(head -c 18 /dev/urandom | base64)
        say "GENERATED ROOT PASSWORD: $MYSQL_ROOT_PASSWORD"
    fi
    say "Initializing database files"
    rm -rf "$STAGING"
    mkdir "$STAGING"
    chown mysql:mysql "$STAGING"
    if ! output=$({
        echo "CREATE DATABASE mysql;"
        echo "USE mysql;"
        cat $share/mysql_system_tables.sql $share/mysql_performance_tables.sql \
            $share/mysql_system_tables_data.sql $share/maria_add_gis_sp_bootstrap.sql $share/mysql_sys_schema.sql
        accounts
    } | mariadbd --bootstrap --user=mysql --datadir="$STAGING" --skip-log-bin 2>&1); then
        echo "$output" >&2
        fail "cannot initialize the database files"
    fi
    # Everything but the system tables, whose folder tells that all is there.
    find_all "$STAGING" | while read -r file; do
        [ "$file" = mysql ] || mv "$STAGING/$file" "$DATADIR/"
    done
    sync
    mv "$STAGING/mysql" "$DATADIR/"
    rm -rf "$STAGING"
    say "Database files initialized"
}

find_all() { (cd "$1" && ls -A); }

case "${1:-mysqld}" in
-*) set -- mysqld "$@" ;;
esac

if [ "${1:-mysqld}" = mysqld ] || [ "$1" = mariadbd ]; then
    [ $# -eq 0 ] || shift
    for name in MYSQL_ROOT_PASSWORD MYSQL_ROOT_HOST MYSQL_DATABASE MYSQL_USER MYSQL_PASSWORD; do
        from_file $name
    done
    mkdir -p /run/mysqld "$DATADIR"
    if [ "$(id -u)" = 0 ]; then
        # A volume belongs to root when it is new.
        chown mysql:mysql /run/mysqld "$DATADIR"
    fi
    [ -d "$DATADIR/mysql" ] || initialise
    unset "${!MYSQL_@}"
    exec mariadbd "$@"
fi
exec "$@"
