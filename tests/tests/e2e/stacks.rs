//! Manifests as users bring them, `tests/manifests`, on a cluster: what they name runs, answers, and goes again. The images
//! are stand-ins under the names that the files use: real Redis, MariaDB, nginx, WordPress and Adminer.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::fs::DirBuilder;
use std::path::{Path, PathBuf};

use skep_tests::answers::{exec_shows, http_shows, no_trace, tcp_says};
use skep_tests::stand_ins::Archive;
use skep_tests::{Lab, host};

/// The names in the files.
const IMAGES: [&str; 8] = [
    "redis:latest",
    "mysql:latest",
    "mysql:5.7",
    "mysql:8.0",
    "nginx:latest",
    "wordpress:latest",
    "adminer:latest",
    "rabbitmq:management",
];
/// What the two files with `build` build, which their users push under a name of their own.
const BUILT: &str = "example/counter:1";

/// A manifest in a directory with what it names.
struct Case {
    name: &'static str,
    dir: tempfile::TempDir,
    files: Vec<PathBuf>,
    services: &'static [(&'static str, usize)],
}

impl Case {
    fn new(name: &'static str, services: &'static [(&'static str, usize)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(format!("{name}.yml"));
        std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests").join(format!("{name}.yml")), &file)
            .unwrap();
        Self { name, dir, files: vec![file], services }
    }

    fn with(self, file: &str, text: &str) -> Self {
        std::fs::write(self.dir.path().join(file), text).unwrap();
        self
    }

    /// A file that is laid over the manifest.
    fn over(mut self, text: &str) -> Self {
        self.files.push(self.dir.path().join("over.yml"));
        self.with("over.yml", text)
    }

    /// The name of the stack: that of the file, in the letters that are allowed.
    fn stack(&self) -> String {
        self.name.replace('.', "-")
    }

    fn flags(&self, flag: &'static str) -> Vec<&str> {
        self.files.iter().flat_map(|file| [flag, file.to_str().unwrap()]).collect()
    }

    /// By skep: applied, waited for, asked, applied again, removed.
    fn by_skep(&self, lab: &Lab, answers: impl Fn(&str)) {
        let stack = self.stack();
        let apply = [&["apply", "--timeout", "60s", "--stack", &stack][..], &self.flags("-f")].concat();
        let said = lab.skep("m1", &apply).unwrap_or_else(|e| panic!("{}: {e:#}", self.name));
        assert!(said.contains(&format!("stack {stack}: ")) && said.contains(" to create"), "{said}");
        for (service, tasks) in self.services {
            assert_eq!(
                lab.running("m1", &format!("{stack}_{service}")).len(),
                *tasks,
                "{stack}_{service} was waited for"
            );
        }
        answers(&stack);
        assert_eq!(lab.skep("m1", &apply).unwrap(), format!("stack {stack}: no changes\n"));
        lab.skep("m1", &["stack", "rm", &stack]).unwrap();
        no_trace(lab, &stack);
    }

    /// By the stock client, as far as it takes the file.
    fn by_docker(&self, lab: &Lab, answers: impl Fn(&str)) {
        let stack = self.stack();
        let deploy = ["stack", "deploy", "--detach=true", "--resolve-image", "never"];
        let deploy = [&deploy[..], &self.flags("-c"), &[&stack]].concat();
        lab.docker("m2", &deploy).unwrap_or_else(|e| panic!("{}: {e:#}", self.name));
        for (service, tasks) in self.services {
            lab.wait_for_running("m1", &format!("{stack}_{service}"), *tasks);
        }
        answers(&stack);
        let said = lab.skep("m1", &[&["stack", "diff", "--stack", &stack][..], &self.flags("-f")].concat()).unwrap();
        assert_eq!(said, format!("stack {stack}: no changes\n"), "both clients make the same of {}", self.name);
        lab.docker("m1", &["stack", "rm", &stack]).unwrap();
        no_trace(lab, &stack);
    }
}

#[test]
#[ignore = "needs root"]
fn manifests_of_users_run_answer_and_go() {
    let lab = Lab::up(2, 1, &[]);
    Archive::of(&[&IMAGES[..], &[BUILT]].concat()).unwrap().load(&lab);
    // Those that publish the same port, one after another; beside them the others.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            a_database_with_its_page(&lab);
            a_blog(&lab);
            a_page_that_was_built(&lab);
        });
        scope.spawn(|| {
            a_proxy_with_a_page_that_was_built(&lab);
            replicas_of_kubernetes(&lab);
            middleware_with_data_in_places(&lab);
        });
    });
    for node in lab.nodes() {
        assert_eq!(host::pids_of(&lab.cgroup(), &node), [0_u64; 0], "no process of a container is left on {node}");
    }
}

/// `stack.yml`.
fn a_database_with_its_page(lab: &Lab) {
    let case = Case::new("stack", &[("db", 1), ("adminer", 1)]);
    let answers = |stack: &str| {
        http_shows(lab, 8080, "/", "<title>Login - Adminer</title>");
        let login = "echo mysqli_connect('db', 'root', '123456')->query('select version()')->fetch_row()[0];";
        exec_shows(lab, &format!("{stack}_adminer"), 0, &["stand-in-php", "-r", login], "MariaDB");
    };
    case.by_skep(lab, answers);
    case.by_docker(lab, answers);
}

/// `wordpress.yml`.
fn a_blog(lab: &Lab) {
    let case = Case::new("wordpress", &[("mysql", 1), ("wordpress", 1)]);
    // Not by the stock client: that makes its network a bridge of one host, which no service can be on, in Docker neither.
    // WordPress asks its database before it shows this.
    case.by_skep(lab, |_| http_shows(lab, 8080, "/wp-admin/install.php", "five-minute WordPress installation"));
}

/// `web-redis.yml`.
fn a_page_that_was_built(lab: &Lab) {
    let alone = Case::new("web-redis", &[]);
    let refused =
        lab.skep("m1", &[&["apply", "--stack", "x"][..], &alone.flags("-f")].concat()).unwrap_err().to_string();
    assert!(refused.contains("web-redis.yml:9:5") && refused.contains("build and push the image"), "{refused}");
    let case = Case::new("web-redis", &[("redis", 1), ("web", 1)])
        .over(&format!("version: '3'\nservices: {{web: {{image: '{BUILT}'}}}}\n"));
    let answers = |stack: &str| {
        http_shows(lab, 8080, "/", "counted by redis");
        exec_shows(lab, &format!("{stack}_redis"), 0, &["redis-cli", "incrby", "hits", "1000"], "100");
        http_shows(lab, 8080, "/", "visit 100");
    };
    case.by_skep(lab, answers);
    case.by_docker(lab, answers);
}

/// `nginx-flask-redis.yml`.
fn a_proxy_with_a_page_that_was_built(lab: &Lab) {
    let proxy = "events {}\nhttp { server { listen 80; location / { proxy_pass http://flask:5000; } location = /own { return 200 'of nginx.conf'; } } }\n";
    let case = Case::new("nginx-flask-redis", &[("nginx", 1), ("flask", 1), ("myredis", 1)])
        .with("nginx.conf", proxy)
        .over(&format!("version: '3'\nservices: {{flask: {{image: '{BUILT}'}}}}\n"));
    let answers = |_: &str| {
        http_shows(lab, 80, "/own", "of nginx.conf");
        http_shows(lab, 80, "/", "counted by myredis");
    };
    case.by_skep(lab, answers);
    case.by_docker(lab, answers);
}

/// `replication-controller.yml`.
fn replicas_of_kubernetes(lab: &Lab) {
    let case = Case::new("replication-controller", &[("nginx", 3)]);
    // No Service names them: each is asked where it is.
    case.by_skep(lab, |stack| {
        for replica in 0..3 {
            exec_shows(
                lab,
                &format!("{stack}_nginx"),
                replica,
                &["wget", "-qO-", "http://127.0.0.1/"],
                "Welcome to nginx!",
            );
        }
    });
}

/// `middleware-3.8.yml`, whose data lie at places of the node.
fn middleware_with_data_in_places(lab: &Lab) {
    let places = Places::new(&["/srv/data/redis_data", "/srv/data/mysql_data", "/srv/data/rabbitmq_data"]);
    let case = Case::new("middleware-3.8", &[("redis", 1), ("mysql", 1), ("rabbitmq", 1)]);
    let answers = |stack: &str| {
        tcp_says(lab, 6379, b"PING\r\n", b"-NOAUTH");
        tcp_says(lab, 6379, b"AUTH synxspringboot\r\nSET kept 1\r\nSAVE\r\n", b"+OK\r\n+OK\r\n+OK");
        tcp_says(lab, 3306, b"", b"MariaDB");
        let query = ["mysql", "-hmysql", "-uroot", "-psynxspringboot", "-e", "show databases"];
        exec_shows(lab, &format!("{stack}_mysql"), 0, &query, "user_service");
        tcp_says(lab, 5672, b"HELLO\0\0\0", b"AMQP\0\0\x09\x01");
        http_shows(lab, 15672, "/", "RabbitMQ Management of admin");
    };
    case.by_skep(lab, answers);
    for kept in ["redis_data/dump.rdb", "mysql_data/user_service", "rabbitmq_data/made"] {
        assert!(Path::new("/srv/data").join(kept).exists(), "{kept} lies where the volume's device is");
    }
    case.by_docker(lab, answers);
    drop(places);
}

/// Directories of the host, made for the test and gone with it.
struct Places(Vec<PathBuf>);

impl Places {
    fn new(paths: &[&str]) -> Self {
        let mut made = Self(Vec::new());
        for path in paths.iter().map(Path::new) {
            assert!(!path.exists(), "{} is somebody's: the test will not touch it", path.display());
            for part in path.ancestors().collect::<Vec<_>>().into_iter().rev().filter(|part| !part.exists()) {
                DirBuilder::new().create(part).unwrap();
                made.0.push(part.to_owned());
            }
        }
        made
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        // Innermost first; what cannot be removed is told by the next run.
        self.0.iter().rev().for_each(|path| drop(std::fs::remove_dir_all(path)));
    }
}
