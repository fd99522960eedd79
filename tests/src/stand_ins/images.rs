//! Which images there are stand-ins for, and what each is made of.

/// An image.
pub struct Image {
    /// The names that it has, all that manifests use.
    pub names: &'static [&'static str],
    /// Layers of programs and directories of the tree, each with what is left out of it.
    pub programs: &'static [(&'static [&'static str], &'static [&'static str])],
    /// Files of our own, by path.
    pub scripts: &'static [(&'static str, &'static str)],
    /// As an image's own.
    pub entrypoint: &'static [&'static str],
    /// As an image's own.
    pub command: &'static [&'static str],
    /// Working directory.
    pub directory: &'static str,
    /// Paths at which it declares volumes.
    pub volumes: &'static [&'static str],
    /// The signal that ends it; that of Docker where it is empty. A first process without a handler outlives `SIGTERM`.
    pub stop: &'static str,
}

/// One without anything, for the table.
const EMPTY: Image = Image {
    names: &[],
    programs: &[],
    scripts: &[],
    entrypoint: &[],
    command: &[],
    directory: "/",
    volumes: &[],
    stop: "",
};

type Programs = (&'static [&'static str], &'static [&'static str]);
const PHP: Programs = (&["usr/bin/php8.*", "usr/lib/php/20*"], &[]);
const REDIS: Programs = (&["usr/bin/redis-server", "usr/bin/redis-cli", "usr/bin/getent"], &[]);
const MARIADB: Programs = (
    &["usr/sbin/mariadbd", "usr/bin/mariadb", "usr/bin/mariadb-admin", "usr/bin/mariadb-dump", "usr/share/mysql"],
    &["usr/share/mysql/fill_help_tables.sql", "usr/share/mysql/mysql_sys_schema.sql"],
);
/// Without what compiles queries: its library is larger than all the rest.
const POSTGRES: Programs = (
    &[
        "usr/lib/postgresql/*/bin/initdb",
        "usr/lib/postgresql/*/bin/pg_isready",
        "usr/lib/postgresql/*/bin/postgres",
        "usr/lib/postgresql/*/bin/psql",
        "usr/lib/postgresql/*/lib/dict_snowball.so",
        "usr/lib/postgresql/*/lib/plpgsql.so",
        "usr/share/postgresql",
    ],
    &[],
);
/// Pages without their scripts, which are most of it.
const WORDPRESS: Programs = (
    &["usr/share/wordpress", "usr/share/php/getid3"],
    &["usr/share/wordpress/wp-includes/js", "usr/share/wordpress/wp-admin/js", "usr/share/wordpress/wp-admin/images"],
);

/// PHP's own server has a handler for this one.
const PHP_STOPS: &str = "SIGINT";
const COUNTER: &[(&str, &str)] = &[
    PHP_SCRIPT,
    ("srv/redis.php", include_str!("../../stand-ins/redis.php")),
    ("srv/counter.php", include_str!("../../stand-ins/counter.php")),
];
const PHP_SCRIPT: (&str, &str) = ("usr/local/bin/stand-in-php", include_str!("../../stand-ins/stand-in-php"));

/// All of them.
pub const IMAGES: &[Image] = &[
    Image { names: &["busybox:1.36"], command: &["sh"], ..EMPTY },
    // Debian's Redis.
    Image {
        names: &["redis:latest", "redis:alpine", "redis:7", "redis:7.2"],
        programs: &[REDIS],
        scripts: &[
            ("usr/local/bin/start-redis", include_str!("../../stand-ins/redis")),
            ("usr/local/bin/redis-server", include_str!("../../stand-ins/redis-server")),
        ],
        entrypoint: &["start-redis"],
        command: &["redis-server"],
        directory: "/data",
        volumes: &["/data"],
        ..EMPTY
    },
    // Debian's MariaDB, started as the image of MySQL is.
    Image {
        names: &["mysql:latest", "mysql:5.7", "mysql:8.0", "mysql:8.4"],
        programs: &[MARIADB],
        scripts: &[
            ("usr/local/bin/start-mysql", include_str!("../../stand-ins/mysql")),
            ("run/mysqld/readme", "The server's socket is here.\n"),
            ("usr/local/bin/mysqladmin", "#!/bin/sh\nexec mariadb-admin --no-defaults \"$@\"\n"),
            ("usr/local/bin/mysqldump", "#!/bin/sh\nexec mariadb-dump --no-defaults \"$@\"\n"),
            ("usr/local/bin/mysql", "#!/bin/sh\nexec mariadb --no-defaults \"$@\"\n"),
        ],
        entrypoint: &["start-mysql"],
        command: &["mysqld"],
        volumes: &["/var/lib/mysql"],
        ..EMPTY
    },
    // Debian's nginx.
    Image {
        names: &["nginx:latest", "nginx:1.27"],
        programs: &[(&["usr/sbin/nginx", "etc/nginx/mime.types", "usr/share/nginx/html"], &[])],
        scripts: &[
            ("etc/nginx/nginx.conf", include_str!("../../stand-ins/nginx.conf")),
            ("etc/nginx/conf.d/default.conf", include_str!("../../stand-ins/nginx-default.conf")),
            ("usr/share/nginx/html/index.html", "<title>Welcome to nginx!</title>\n"),
            ("var/lib/nginx/readme", "Bodies of requests are kept here.\n"),
            ("var/log/nginx/readme", "Logs are kept here.\n"),
        ],
        command: &["nginx", "-g", "daemon off;"],
        ..EMPTY
    },
    // Debian's WordPress, served by PHP itself.
    Image {
        names: &["wordpress:latest", "wordpress:6-apache"],
        programs: &[PHP, WORDPRESS],
        scripts: &[PHP_SCRIPT, ("usr/local/bin/start-wordpress", include_str!("../../stand-ins/wordpress"))],
        entrypoint: &["start-wordpress"],
        directory: "/var/www/html",
        volumes: &["/var/www/html"],
        stop: PHP_STOPS,
        ..EMPTY
    },
    // Debian's Adminer, served by PHP itself.
    Image {
        names: &["adminer:latest"],
        programs: &[PHP, (&["usr/share/adminer/adminer.php"], &[])],
        scripts: &[PHP_SCRIPT, ("var/www/adminer/index.php", include_str!("../../stand-ins/adminer.php"))],
        command: &["stand-in-php", "-S", "0.0.0.0:8080", "-t", "/var/www/adminer"],
        stop: PHP_STOPS,
        ..EMPTY
    },
    // The application that users build themselves: a page that counts in a redis.
    Image {
        names: &["example/counter:1", "example/flask:1", "example/shop:1", "registry.example.org/guestbook:v5"],
        programs: &[PHP],
        scripts: COUNTER,
        command: &["stand-in-php", "-S", "0.0.0.0:5000", "/srv/counter.php"],
        stop: PHP_STOPS,
        ..EMPTY
    },
    // Answers on RabbitMQ's ports, and is no queue.
    Image {
        names: &["rabbitmq:management"],
        scripts: &[
            ("usr/local/bin/start-rabbitmq", include_str!("../../stand-ins/rabbitmq")),
            ("usr/local/bin/amqp-version", include_str!("../../stand-ins/amqp-version")),
        ],
        command: &["start-rabbitmq"],
        volumes: &["/var/lib/rabbitmq"],
        stop: "SIGKILL",
        ..EMPTY
    },
    // Debian's PostgreSQL.
    Image {
        names: &["postgres:16", "postgres:15-alpine"],
        programs: &[POSTGRES],
        scripts: &[
            ("usr/local/bin/start-postgres", include_str!("../../stand-ins/postgres")),
            ("usr/local/bin/pg_isready", POSTGRES_CLIENT),
            ("usr/local/bin/psql", POSTGRES_CLIENT),
        ],
        entrypoint: &["start-postgres"],
        command: &["postgres"],
        volumes: &["/var/lib/postgresql/data"],
        stop: "SIGINT",
        ..EMPTY
    },
    // The voting application, written anew in PHP.
    voting(&["dockersamples/examplevotingapp_vote:latest"], VOTE),
    voting(&["dockersamples/examplevotingapp_result:latest"], RESULT),
    voting(&["dockersamples/examplevotingapp_worker:latest"], WORKER),
    // Debian's Prometheus and its exporter.
    Image {
        names: &["prom/prometheus:v2.53.0"],
        programs: &[(&["usr/bin/prometheus", "usr/share/prometheus"], &[])],
        scripts: &[("etc/prometheus/readme", "Its configuration is mounted here.\n")],
        entrypoint: &["prometheus", "--storage.tsdb.path=/prometheus"],
        volumes: &["/prometheus"],
        ..EMPTY
    },
    Image {
        names: &["prom/node-exporter:v1.8.1"],
        programs: &[(&["usr/bin/prometheus-node-exporter"], &[])],
        entrypoint: &["prometheus-node-exporter"],
        ..EMPTY
    },
    // Of these there are no packages: a page on their port says so.
    answering(&["grafana/grafana-oss:11.1.0"], &["answer", "3000", "Grafana"]),
    answering(&["nginx/nginx-prometheus-exporter:1.1"], &["answer", "9113", "The exporter"]),
    answering(&["fluent/fluent-bit:3.0"], &["answer", "2020", "Fluent Bit"]),
    answering(&["registry.example.org/shop/migrate:latest"], &[]),
];

const VOTE: &[&str] = &["env", "ROLE=vote", "stand-in-php", "-S", "0.0.0.0:80", "/srv/vote.php"];
const RESULT: &[&str] = &["env", "ROLE=result", "stand-in-php", "-S", "0.0.0.0:80", "/srv/vote.php"];
const WORKER: &[&str] = &["env", "ROLE=worker", "stand-in-php", "/srv/vote.php"];
const POSTGRES_CLIENT: &str = include_str!("../../stand-ins/postgres-client");

const fn voting(names: &'static [&'static str], command: &'static [&'static str]) -> Image {
    let scripts: &[(&str, &str)] = &[
        PHP_SCRIPT,
        ("srv/redis.php", include_str!("../../stand-ins/redis.php")),
        ("srv/vote.php", include_str!("../../stand-ins/vote.php")),
    ];
    // The worker has no handler for the signal of PHP's server.
    Image { names, programs: &[PHP], scripts, command, stop: "SIGKILL", ..EMPTY }
}

const fn answering(names: &'static [&'static str], entrypoint: &'static [&'static str]) -> Image {
    let scripts: &[(&str, &str)] = &[
        ("usr/local/bin/answer", include_str!("../../stand-ins/answer")),
        ("usr/local/bin/migrate", "#!/bin/sh\necho \"migrates $*\"\n"),
    ];
    Image { names, scripts, entrypoint, stop: "SIGKILL", ..EMPTY }
}
