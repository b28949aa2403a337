//! A PostgreSQL of the test's own, from the system's binaries.

#![allow(dead_code, reason = "each test file uses its own part of this one")]
#![allow(clippy::expect_used, reason = "a failed expectation is the test's failure")]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

const INSTALL: &str = "PostgreSQL's server is missing, so this test cannot run. Install it by \
                       `tests/install`, or: apt-get install --yes postgresql";

/// A program that runs until it is dropped, or until the test's process has ended, however it ends.
pub(crate) struct Daemon {
    child: Child,
    /// The program is stopped when this is closed.
    alive: Option<ChildStdin>,
}

impl Daemon {
    /// Runs `program` as an unprivileged user in `folder`, with its output in the file `log` there.
    /// At its end it gets `signal`, and then `finally` is run.
    pub(crate) fn start<A: AsRef<OsStr>>(
        folder: &Path,
        [signal, finally]: [&str; 2],
        program: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let log = fs::File::create(folder.join("log")).expect("a log");
        // `cat` ends when the pipe does: with us, even if we are killed.
        let script = r#"signal=$1; finally=$2; shift 2; "$@" <&- & cat
                        kill -$signal $!; wait $!; $finally"#;
        let mut child = as_unprivileged(Path::new("/bin/sh"))
            .args(["-c", script, "sh", signal, finally])
            .arg(program)
            .args(args)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log)
            .spawn()
            .expect("sh runs");
        let alive = child.stdin.take();
        Self { child, alive }
    }

    /// Stops the program, and waits until it has stopped.
    pub(crate) fn stop(&mut self) {
        drop(self.alive.take());
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs until it is dropped, or until the test's process has ended, however it ends.
pub(crate) struct Server {
    daemon: Daemon,
    folder: TempDir,
}

impl Server {
    /// The one of this process, for tests that leave it running. Its folder goes when the process
    /// has ended.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: LazyLock<Server> = LazyLock::new(|| {
            let folder = folder();
            let finally = format!("rm -r {}", folder.path().display());
            Server::start_in(folder, &finally, &["fsync=off"])
        });
        &SHARED
    }

    pub(crate) fn start() -> Self {
        Self::start_in(folder(), ":", &["fsync=off"])
    }

    /// One whose commits wait for the disk.
    pub(crate) fn start_durable() -> Self {
        Self::start_with(&["fsync=on"])
    }

    /// One with these settings, each as `name=value`, in place of the test's own.
    pub(crate) fn start_with(settings: &[&str]) -> Self {
        Self::start_in(folder(), ":", settings)
    }

    /// Runs `finally` when the server has stopped.
    fn start_in(folder: TempDir, finally: &str, settings: &[&str]) -> Self {
        let data = folder.path().join("data");
        if !data.exists() {
            initdb(&data, &["--auth=trust"]);
        }
        let path = |path: &Path| path.display().to_string();
        let [data, sockets] = [path(&data), path(folder.path())];
        // The server takes the last of several values.
        let defaults = ["listen_addresses=", "max_connections=300", "shared_buffers=64MB"];
        let settings = defaults.iter().chain(settings).flat_map(|setting| ["-c", *setting]);
        let args = ["-D", &data, "-k", &sockets].into_iter().chain(settings);
        let postgres = binaries().join("postgres");
        let daemon = Daemon::start(folder.path(), ["INT", finally], &postgres, args);
        let server = Self { daemon, folder };
        let begun = Instant::now();
        while !server.psql("postgres", "SELECT 1") {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "PostgreSQL does not start: {}",
                server.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// Where it listens: a socket in its folder.
    pub(crate) fn url(&self) -> String {
        format!("postgres://test@localhost/postgres?host={}", self.folder.path().display())
    }

    /// The file of that socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join(".s.PGSQL.5432")
    }

    /// What it wrote into its log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).expect("a log")
    }

    /// Has the server do something, and says whether it did.
    pub(crate) fn psql(&self, database: &str, sql: &str) -> bool {
        Command::new(binaries().join("psql"))
            .args(["-X", "-q", "-U", "test", "-d", database, "-c", sql, "-h"])
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// Makes a user who has to name this password. All others go on without one.
    pub(crate) fn demand_password(&self, user: &str, password: &str) {
        let rules = format!("local all {user} scram-sha-256\nlocal all all trust");
        let made = [
            format!("CREATE ROLE {user} LOGIN PASSWORD '{password}'"),
            format!(
                "DO $$ BEGIN EXECUTE format('COPY (SELECT regexp_split_to_table(%L, E''\\n'')) TO %L',
                 '{rules}', current_setting('hba_file')); END $$"
            ),
            "SELECT pg_reload_conf()".to_owned(),
        ];
        for sql in made {
            assert!(self.psql("postgres", &sql), "{sql}");
        }
    }

    /// Stops, as an administrator would do it; all connections are cut.
    pub(crate) fn stop(&mut self) {
        self.daemon.stop();
    }

    /// Starts again with the data that is there.
    pub(crate) fn restart(mut self) -> Self {
        self.stop();
        let folder = std::mem::replace(&mut self.folder, folder());
        Self::start_in(folder, ":", &["fsync=off"])
    }
}

/// A disk of a megabyte that a server can use; until it is dropped, which has to be after the
/// server.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    /// None where we may not mount anything.
    pub(crate) fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs"])
            .arg(folder.path())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        mounted.then_some(Self(folder))
    }

    /// A folder that belongs to the server.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir(&path).expect("a folder");
        give_away(&path);
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// A folder that a daemon can write to.
pub(crate) fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    give_away(folder.path());
    folder
}

/// Makes a file or a folder the property of the user that daemons run as.
pub(crate) fn give_away(path: &Path) {
    if let Some(user) = unprivileged() {
        let owned = Command::new("chown").arg(user).arg(path).status();
        assert!(owned.is_ok_and(|status| status.success()), "chown");
    }
}

/// Makes the files of a database server, whose superuser is `test`.
pub(crate) fn initdb(data: &Path, args: &[&str]) {
    let made = as_unprivileged(&binaries().join("initdb"))
        .args(["--encoding=UTF8", "--no-locale", "--no-sync", "--username=test"])
        .args(args)
        .arg("--pgdata")
        .arg(data)
        .current_dir(data.parent().expect("a folder around it"))
        .output()
        .expect("initdb runs");
    assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
}

pub(crate) fn binaries() -> &'static Path {
    static BINARIES: LazyLock<PathBuf> = LazyLock::new(|| {
        let newest = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .map(|version| version.path().join("bin"))
            .filter(|bin| bin.join("initdb").exists() && bin.join("postgres").exists())
            .max();
        let on_path = || {
            let path = std::env::var_os("PATH")?;
            std::env::split_paths(&path).find(|bin| bin.join("initdb").exists())
        };
        newest.or_else(on_path).expect(INSTALL)
    });
    &BINARIES
}

/// PostgreSQL does not run as root. The user to run it as, if we are that.
fn unprivileged() -> Option<String> {
    let id = |of: &[&str]| {
        let output = Command::new("id").args(of).output().ok()?;
        let id = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| id.trim().to_owned())
    };
    if id(&["-u"]).as_deref() != Some("0") {
        return None;
    }
    let user = ["postgres", "nobody"].into_iter().find(|user| id(&["-u", user]).is_some());
    Some(user.expect("a user to run PostgreSQL as").to_owned())
}

pub(crate) fn as_unprivileged(program: &Path) -> Command {
    match unprivileged() {
        None => Command::new(program),
        Some(user) => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]).arg(program);
            command
        }
    }
}
