//! A PostgreSQL server that listens on TCP, can have a standby, and can be killed.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::postgres::{Daemon, as_unprivileged, binaries, folder, give_away, initdb};

/// How long anything is waited for before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The rule of access by TCP of a server that trusts everybody on this machine.
const TRUST: &str = "host all all 127.0.0.1/32 trust";

static SHARED: Mutex<Option<Arc<Cluster>>> = Mutex::new(None);

/// Stops the shared server. A `static` is never dropped, so `main` calls this.
pub(crate) fn stop_shared() {
    drop(SHARED.lock().unwrap().take());
}

/// A server, until it is dropped.
pub(crate) struct Cluster {
    daemon: Daemon,
    folder: TempDir,
    port: u16,
    options: Options,
}

/// What a server is started with.
#[derive(Clone)]
struct Options {
    settings: Vec<String>,
    /// The database that statements are run in.
    database: String,
    /// How large a file can grow, in bytes.
    file_limit: Option<u64>,
}

impl Cluster {
    /// The server for tests that leave it as it is.
    pub(crate) fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap();
        Arc::clone(shared.get_or_insert_with(|| Arc::new(Self::start(&[]))))
    }

    /// A server with settings such as `max_connections=12`, that trusts everybody on this machine.
    pub(crate) fn start(settings: &[&str]) -> Self {
        Self::start_with(settings, TRUST, None)
    }

    /// A server whose rules of access by TCP are `access`.
    pub(crate) fn start_with_access(settings: &[&str], access: &str) -> Self {
        Self::start_with(settings, access, None)
    }

    /// A server whose files cannot grow beyond so many bytes, which is to it as a full disk.
    pub(crate) fn start_with_file_limit(bytes: u64) -> Self {
        Self::start_with(&[], TRUST, Some(bytes))
    }

    fn start_with(settings: &[&str], access: &str, file_limit: Option<u64>) -> Self {
        let folder = folder();
        let data = folder.path().join("data");
        initdb(&data, &["--wal-segsize=1"]);
        let rules = format!("local all test trust\nlocal replication test trust\n{access}\n");
        fs::write(data.join("pg_hba.conf"), rules).unwrap();
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let database = "postgres".to_owned();
        Self::start_in(folder, Options { settings, database, file_limit })
    }

    /// Has [`run`](Self::run) and its like work in another database.
    pub(crate) fn enter(&mut self, database: &str) {
        database.clone_into(&mut self.options.database);
    }

    /// A server on the data that a shell command makes in the folder it is told.
    pub(crate) fn made_by(&self, command: impl FnOnce(&Path) -> String) -> Self {
        let folder = folder();
        let made = as_unprivileged(Path::new("/bin/sh"))
            .args(["-c", &command(&folder.path().join("data"))])
            .env("PATH", format!("{}:/usr/bin:/bin", binaries().display()))
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self::start_in(folder, self.options.clone())
    }

    /// A copy of this server that follows it and can take its place.
    pub(crate) fn standby(&self) -> Self {
        let folder = folder();
        let copied = as_unprivileged(&binaries().join("pg_basebackup"))
            .args(["-U", "test", "-X", "stream", "-c", "fast", "-R", "-D"])
            .arg(folder.path().join("data"))
            .arg("-h")
            .arg(self.folder.path())
            .args(["-p", &self.port.to_string()])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        Self::start_in(folder, self.options.clone())
    }

    fn start_in(folder: TempDir, options: Options) -> Self {
        let port = free_port();
        let cluster = Self { daemon: run(folder.path(), port, &options), folder, port, options };
        cluster.wait_until_ready();
        cluster
    }

    fn wait_until_ready(&self) {
        let begun = Instant::now();
        while let Err(said) = self.psql("SELECT 1") {
            assert!(begun.elapsed() < PATIENCE, "{said}: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The URL of the server by TCP, for its superuser.
    pub(crate) fn url(&self) -> String {
        format!("postgres://test@127.0.0.1:{}/postgres", self.port)
    }

    /// The URL of its Unix socket, for its superuser.
    pub(crate) fn socket_url(&self) -> String {
        let folder = self.folder.path().display();
        format!("postgres://test@localhost:{}/postgres?host={folder}", self.port)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Appends to one of its configuration files, and has it read them.
    pub(crate) fn configure(&self, file: &str, lines: &str) {
        use std::io::Write as _;
        let path = self.folder.path().join("data").join(file);
        let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(lines.as_bytes()).unwrap();
        self.run("SELECT pg_reload_conf()");
    }

    /// Writes a file that the server can read, and nobody else.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        write_private(self.folder.path(), name, content)
    }

    /// Runs statements as the superuser, and returns what they print.
    pub(crate) fn psql(&self, sql: &str) -> Result<String, String> {
        let output = std::process::Command::new(binaries().join("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "test", "-h"])
            .arg(self.folder.path())
            .args(["-p", &self.port.to_string(), "-d", &self.options.database, "-c", sql])
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Runs statements that have to succeed.
    pub(crate) fn run(&self, sql: &str) -> String {
        self.psql(sql).unwrap_or_else(|said| panic!("{sql}: {said}"))
    }

    /// Runs a query for one number.
    pub(crate) fn number(&self, sql: &str) -> u64 {
        let said = self.run(sql);
        said.parse().unwrap_or_else(|_| panic!("{sql}: {said}"))
    }

    /// How many connections clients have to the server, save the one that asks.
    pub(crate) fn backends(&self) -> u64 {
        self.number(
            "SELECT count(*) FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
        )
    }

    /// Stops it as an administrator does (`pg_ctl stop -m fast`): standbys get everything first.
    pub(crate) fn stop(&mut self) {
        self.daemon.stop();
    }

    /// Starts it again on its port, with the data that is there.
    pub(crate) fn start_again(&mut self) {
        self.daemon = run(self.folder.path(), self.port, &self.options);
        self.wait_until_ready();
    }

    /// Kills all its processes, as a machine does that loses power.
    pub(crate) fn kill(&self) {
        let postmaster = self.postmaster();
        // A stopped postmaster starts no new processes.
        signal(postmaster, Signal::STOP);
        for child in children(postmaster) {
            signal(child, Signal::KILL);
        }
        signal(postmaster, Signal::KILL);
    }

    /// Begins to stop it as `pg_ctl stop -m smart` does: it ends when nobody is connected any more,
    /// and lets nobody in.
    pub(crate) fn begin_to_stop(&self) {
        signal(self.postmaster(), Signal::TERM);
    }

    /// Stops it, has `damage` change the file of a table or an index, and starts it again.
    pub(crate) fn damage(&mut self, relation: &str, damage: impl FnOnce(&mut Vec<u8>)) {
        let path = self.run(&format!("SELECT pg_relation_filepath('{relation}')"));
        let path = self.folder.path().join("data").join(path);
        self.stop();
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();
        self.start_again();
    }

    fn postmaster(&self) -> u32 {
        let file = fs::read_to_string(self.folder.path().join("data/postmaster.pid")).unwrap();
        file.lines().next().unwrap().parse().unwrap()
    }

    /// Freezes all its processes, as a hung machine does; until this is dropped.
    pub(crate) fn freeze(&self) -> Frozen {
        let postmaster = self.postmaster();
        signal(postmaster, Signal::STOP);
        let mut processes = children(postmaster);
        processes.push(postmaster);
        for process in &processes {
            signal(*process, Signal::STOP);
        }
        Frozen(processes)
    }
}

/// The processes of a frozen server.
pub(crate) struct Frozen(Vec<u32>);

impl Drop for Frozen {
    fn drop(&mut self) {
        for process in &self.0 {
            signal(*process, Signal::CONT);
        }
    }
}

fn run(folder: &Path, port: u16, options: &Options) -> Daemon {
    let limit = options.file_limit.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
    let own = ["listen_addresses=127.0.0.1", "fsync=off", "shared_buffers=16MB", "jit=off"];
    let own = own.map(ToOwned::to_owned).into_iter().chain([format!("port={port}")]);
    let path = |path: PathBuf| path.display().to_string();
    let mut args = vec![format!("--fsize={limit}"), path(binaries().join("postgres"))];
    args.extend(["-D".to_owned(), path(folder.join("data"))]);
    args.extend(["-k".to_owned(), path(folder.to_owned())]);
    let settings = own.chain(options.settings.iter().cloned());
    args.extend(settings.flat_map(|setting| ["-c".to_owned(), setting]));
    Daemon::start(folder, ["INT", ":"], Path::new("/usr/bin/prlimit"), args)
}

fn children(process: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    list.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// Sends a signal to a process, which may have ended.
fn signal(process: u32, signal: Signal) {
    let process = Pid::from_raw(process.try_into().unwrap()).unwrap();
    let _ = kill_process(process, signal);
}

/// A port of 127.0.0.1 that nobody listens on.
pub(crate) fn free_port() -> u16 {
    // Below the ports that the system gives to connections: one of them could take it in between.
    std::iter::repeat_with(|| fastrand::u16(10_000..32_000))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .unwrap()
}

/// Writes a file for the user that daemons run as.
pub(crate) fn write_private(folder: &Path, name: &str, content: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    give_away(&path);
    path
}

/// Looks until there is something.
pub(crate) async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
