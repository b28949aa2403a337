//! Processes that share a store.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use hurdlr_oauth2::secrecy::ExposeSecret;
use hurdlr_oauth2::store::{PostgresStore, Save, SqliteStore, TokenStore};

use super::{SECRET, claim, key, read, sqlite_at, token, url_of};
use crate::postgres::Server;

const PROCESSES: usize = 16;
const ROUNDS: usize = 30;

/// Another process of this test, told what to do by lines on its input.
struct Process {
    child: Child,
    input: ChildStdin,
    answers: mpsc::Receiver<String>,
}

impl Process {
    fn start(url: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "durable::processes::a_process_of_another_test", "--nocapture"])
            .env("STORE_URL", url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The test harness writes too, and on the same line.
                if let Some((_, answer)) = line.split_once('@') {
                    let _ = sender.send(answer.to_owned());
                }
            }
        });
        Self { child, input, answers }
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.input, "{what}").unwrap();
    }

    fn answer(&self) -> String {
        let patience = Duration::from_secs(60);
        self.answers.recv_timeout(patience).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_process_of_another_test() {
    let Ok(url) = std::env::var("STORE_URL") else {
        return;
    };
    let store: Box<dyn TokenStore> = if url.starts_with("sqlite:") {
        let store = SqliteStore::at(url).open_plaintext().await.unwrap();
        store.migrate().await.unwrap();
        Box::new(store)
    } else {
        let store = PostgresStore::at(url).schema("processes");
        let store = store.open_plaintext().await.unwrap();
        store.migrate().await.unwrap();
        Box::new(store)
    };
    println!("@ready");
    let holder = u64::from(std::process::id());
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let (what, subject) = line.split_once(' ').unwrap();
        let key = key(subject);
        match what {
            "claim" => {
                let rows = store.read(std::slice::from_ref(&key)).await.unwrap().pop();
                let row = rows.unwrap().unwrap().filter(|row| row.token.is_some());
                let known = row.map(|row| row.version);
                let claimed = store.claim(&key, claim(holder, known)).await.unwrap();
                println!("@{}", claimed.granted);
            }
            "save" => {
                let rows = store.read(std::slice::from_ref(&key)).await.unwrap().pop();
                let at = rows.unwrap().unwrap().unwrap().version;
                println!(
                    "@{}",
                    store
                        .save(&key, Save { over: at, version: at.next(), token: token() })
                        .await
                        .unwrap()
                );
            }
            _ => panic!("{what}?"),
        }
    }
}

/// They all open and migrate at once, too.
fn one_process_of_many_is_granted(url: &str) {
    let mut processes: Vec<_> = (0..PROCESSES).map(|_| Process::start(url)).collect();
    for process in &processes {
        assert_eq!(process.answer(), "ready");
    }
    for round in 0..ROUNDS {
        // A cold user of this round, and one whose token all rounds renew.
        for subject in [format!("user {round}"), "ann".to_owned()] {
            for process in &mut processes {
                process.tell(&format!("claim {subject}"));
            }
            let granted: Vec<_> = processes.iter().map(Process::answer).collect();
            let holders: Vec<_> = (0..PROCESSES).filter(|at| granted[*at] == "true").collect();
            assert_eq!(holders.len(), 1, "round {round}, {subject}: {granted:?}");
            let holder = &mut processes[holders[0]];
            holder.tell(&format!("save {subject}"));
            assert_eq!(holder.answer(), "true");
        }
    }
}

#[test]
fn one_process_gets_a_claim_in_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    one_process_of_many_is_granted(&url_of(&folder.path().join("tokens.db")));
}

#[test]
fn one_process_gets_a_claim_in_postgres() {
    one_process_of_many_is_granted(&Server::shared().url());
}

/// What a process saved is there after it was killed in the middle of things.
#[tokio::test]
async fn sqlite_outlives_the_processes_that_write_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.db");
    let store = sqlite_at(&path).await;
    for round in 0..5 {
        let mut process = Process::start(&url_of(&path));
        assert_eq!(process.answer(), "ready");
        let subject = format!("user {round}");
        process.tell(&format!("claim {subject}"));
        assert_eq!(process.answer(), "true");
        process.tell(&format!("save {subject}"));
        assert_eq!(process.answer(), "true");
        process.tell("claim somebody");
        drop(process);
        let token = read(&store, &key(&subject)).await.unwrap().token.unwrap();
        assert_eq!(token.payload.expose_secret(), SECRET.as_bytes());
    }
}
