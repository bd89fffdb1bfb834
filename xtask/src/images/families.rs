//! The images themselves. A new one is an entry in [`ALL`] and, if it has files of its own, a folder in
//! `xtask/images`.

use super::spec::{Base, Dir, Family, File, Image, NOTHING};

/// What every image but busybox stands on.
pub(super) const BASE: &[&str] = &[
    "base-files",
    "bash",
    "coreutils",
    "dash",
    "grep",
    "hostname",
    "libc-bin",
    "ncurses-base",
    "netbase",
    "sed",
];

/// Every family, in the order in which they are made.
pub(super) const ALL: &[Family] = &[BUSYBOX, NGINX, REDIS, MYSQL, GUESTBOOK, MICROBLOG];

const BUSYBOX: Family = Family {
    name: "busybox",
    images: &[Image {
        tags: &[
            "busybox:latest",
            "busybox:1.36",
            "busybox:1.28",
            "k8s.gcr.io/busybox:latest",
            "registry.k8s.io/busybox:latest",
        ],
        base: Base::Busybox,
        packages: &["busybox-static"],
        cmd: &["sh"],
        ..NOTHING
    }],
};

const NGINX: Family = Family {
    name: "nginx",
    images: &[
        Image {
            tags: &["nginx:1.0", "nginx:1.14.2"],
            variables: &[("@VERSION@", "1.0")],
            ..NGINX_IMAGE
        },
        Image {
            tags: &["nginx:2.0", "nginx:1.16.1", "nginx:latest"],
            variables: &[("@VERSION@", "2.0")],
            ..NGINX_IMAGE
        },
    ],
};

const NGINX_IMAGE: Image = Image {
    packages: &["nginx"],
    users: &[("www-data", 33)],
    dirs: &[
        Dir {
            path: "var/log/nginx",
            mode: 0o755,
            owner: 0,
        },
        Dir {
            path: "var/lib/nginx",
            mode: 0o755,
            owner: 33,
        },
        Dir {
            path: "etc/nginx/conf.d",
            mode: 0o755,
            owner: 0,
        },
        Dir {
            path: "usr/share/nginx/html",
            mode: 0o755,
            owner: 0,
        },
    ],
    files: &[
        File {
            path: "etc/nginx/nginx.conf",
            content: include_str!("../../images/nginx/nginx.conf"),
            mode: 0o644,
        },
        File {
            path: "etc/nginx/conf.d/default.conf",
            content: include_str!("../../images/nginx/default.conf"),
            mode: 0o644,
        },
        File {
            path: "usr/share/nginx/html/index.html",
            content: include_str!("../../images/nginx/index.html"),
            mode: 0o644,
        },
    ],
    cmd: &["nginx"],
    // Requests under way are answered before it ends.
    stop_signal: "SIGQUIT",
    ports: &["80/tcp"],
    ..NOTHING
};

const REDIS: Family = Family {
    name: "redis",
    images: &[
        Image {
            tags: &[
                "redis:latest",
                "redis:7.2",
                "redis:6.0.5",
                "redis:5.0.4",
                "registry.k8s.io/redis:e2e",
                "k8s.gcr.io/redis:e2e",
            ],
            ..REDIS_IMAGE
        },
        Image {
            tags: &[
                "gcr.io/google_samples/gb-redis-follower:v2",
                "us-docker.pkg.dev/google-samples/containers/gke/gb-redis-follower:v2",
            ],
            env: &[
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "LEADER=redis-leader",
            ],
            ..REDIS_IMAGE
        },
        Image {
            tags: &[
                "gcr.io/google_samples/gb-redisslave:v1",
                "gcr.io/google_samples/gb-redisslave:v3",
                "registry.k8s.io/redis-slave:v2",
                "k8s.gcr.io/redis-slave:v2",
            ],
            env: &[
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "LEADER=redis-master",
            ],
            ..REDIS_IMAGE
        },
    ],
};

const REDIS_IMAGE: Image = Image {
    packages: &["redis-server"],
    users: &[("redis", 999)],
    dirs: &[
        Dir {
            path: "data",
            mode: 0o755,
            owner: 999,
        },
        Dir {
            path: "etc/redis",
            mode: 0o755,
            owner: 0,
        },
    ],
    files: &[
        File {
            path: "etc/redis/redis.conf",
            content: include_str!("../../images/redis/redis.conf"),
            mode: 0o644,
        },
        File {
            path: "usr/local/bin/docker-entrypoint.sh",
            content: include_str!("../../images/redis/entrypoint.sh"),
            mode: 0o755,
        },
    ],
    entrypoint: &["docker-entrypoint.sh"],
    cmd: &["redis-server"],
    working_dir: "/data",
    ports: &["6379/tcp"],
    volumes: &["/data"],
    ..NOTHING
};

const MYSQL: Family = Family {
    name: "mysql",
    images: &[Image {
        tags: &["mysql:5.7", "mysql:5.6", "mysql:latest", "mariadb:latest"],
        packages: &["mariadb-server-core", "mariadb-client-core"],
        picks: &[(
            "mariadb-client",
            &[
                "usr/bin/mariadb-admin",
                "usr/bin/mysqladmin",
                "usr/bin/mariadb-dump",
                "usr/bin/mysqldump",
            ],
        )],
        users: &[("mysql", 999)],
        dirs: &[
            Dir {
                path: "var/lib/mysql",
                mode: 0o755,
                owner: 999,
            },
            Dir {
                path: "run/mysqld",
                mode: 0o755,
                owner: 999,
            },
            Dir {
                path: "etc/mysql",
                mode: 0o755,
                owner: 0,
            },
            Dir {
                path: "etc/mysql/conf.d",
                mode: 0o755,
                owner: 0,
            },
            Dir {
                path: "usr/lib/mysql",
                mode: 0o755,
                owner: 0,
            },
            Dir {
                path: "usr/lib/mysql/plugin",
                mode: 0o755,
                owner: 0,
            },
        ],
        files: &[
            File {
                path: "etc/mysql/my.cnf",
                content: include_str!("../../images/mysql/my.cnf"),
                mode: 0o644,
            },
            File {
                path: "usr/local/bin/docker-entrypoint.sh",
                content: include_str!("../../images/mysql/docker-entrypoint.sh"),
                mode: 0o755,
            },
        ],
        entrypoint: &["docker-entrypoint.sh"],
        cmd: &["mysqld"],
        ports: &["3306/tcp"],
        volumes: &["/var/lib/mysql"],
        ..NOTHING
    }],
};

const GUESTBOOK: Family = Family {
    name: "guestbook",
    images: &[
        Image {
            tags: &[
                "guestbook:latest",
                "gcr.io/google_samples/gb-frontend:v4",
                "gcr.io/google_samples/gb-frontend:v5",
                "gcr.io/google-samples/gb-frontend:v4",
                "gcr.io/google-samples/gb-frontend:v5",
                "us-docker.pkg.dev/google-samples/containers/gke/gb-frontend:v5",
            ],
            ports: &["80/tcp"],
            ..GUESTBOOK_IMAGE
        },
        Image {
            tags: &["registry.k8s.io/guestbook:v3", "k8s.gcr.io/guestbook:v3"],
            env: &[
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "PORT=3000",
            ],
            ports: &["3000/tcp"],
            ..GUESTBOOK_IMAGE
        },
    ],
};

const GUESTBOOK_IMAGE: Image = Image {
    packages: PYTHON,
    files: &[File {
        path: "usr/local/bin/guestbook",
        content: include_str!("../../images/guestbook/guestbook.py"),
        mode: 0o755,
    }],
    cmd: &["guestbook"],
    ..NOTHING
};

/// One set for both programs, so that they share a layer.
const PYTHON: &[&str] = &["python3", "python3-pymysql"];

const MICROBLOG: Family = Family {
    name: "microblog",
    images: &[Image {
        tags: &["microblog:latest", "microblog:1.0"],
        packages: PYTHON,
        files: &[File {
            path: "usr/local/bin/microblog",
            content: include_str!("../../images/microblog/microblog.py"),
            mode: 0o755,
        }],
        cmd: &["microblog"],
        ports: &["5000/tcp"],
        ..NOTHING
    }],
};
