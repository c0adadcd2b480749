//! A Redis server of the test's own, on a free port, which it stops.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::{env, fs};

use tempfile::TempDir;

use super::eventually;

pub struct Redis {
    server: Option<Child>,
    port: u16,
    directory: TempDir,
    settings: &'static [&'static str],
}

impl Redis {
    /// A server that has each change on the disk before it answers; `None` if there is no
    /// `redis-server` here, which is said.
    pub fn start() -> Option<Redis> {
        Redis::start_as(&[])
    }

    /// The same with more settings.
    pub fn start_as(settings: &'static [&'static str]) -> Option<Redis> {
        if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            assert!(env::var_os("MLLP_REDIS_REQUIRED").is_none(), "there is no redis-server here");
            println!("skipped: there is no redis-server here");
            return None;
        }
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut redis = Redis { server: None, port, directory: tempfile::tempdir().unwrap(), settings };
            if redis.restart().is_ok() {
                return Some(redis);
            }
        }
        panic!("redis-server does not start");
    }

    /// Makes it another's replica, and waits until it is up to date.
    pub fn follow(&self, primary: &Redis) {
        self.command(&format!("REPLICAOF 127.0.0.1 {}", primary.port));
        eventually("the replica follows", || self.command("INFO replication").contains("master_link_status:up"));
    }

    /// A sentinel that watches this one as `primary`, and promotes its replica once it is away.
    pub fn watched(&self) -> Redis {
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let directory = tempfile::tempdir().unwrap();
            let mut sentinel = Redis { server: None, port, directory, settings: &[] };
            let configuration = sentinel.directory.path().join("sentinel.conf");
            let text = format!(
                "port {port}\nbind 127.0.0.1\nsentinel monitor primary 127.0.0.1 {} 1\n\
                 sentinel down-after-milliseconds primary 300\nsentinel failover-timeout primary 1000\n",
                self.port
            );
            fs::write(&configuration, text).unwrap();
            let mut command = Command::new("redis-server");
            if sentinel.listens(command.arg(&configuration).arg("--sentinel")).is_ok() {
                return sentinel;
            }
        }
        panic!("the sentinel does not start");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Has it carry out a command, as an operator would; the answer as it comes.
    pub fn command(&self, words: &str) -> String {
        let mut answer = String::new();
        eventually("it has read what it has on its disk", || {
            let mut connection = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
            connection.write_all(format!("{words}\r\n").as_bytes()).unwrap();
            let mut bytes = vec![0; 64 * 1024];
            let mut count = 0;
            loop {
                count += connection.read(&mut bytes[count..]).unwrap();
                answer = String::from_utf8_lossy(&bytes[..count]).into_owned();
                // A text says first how long it is.
                let length = answer.strip_prefix('$').and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
                if length.is_none_or(|length| count >= length) {
                    break;
                }
            }
            !answer.starts_with("-LOADING")
        });
        assert!(answer.starts_with(['+', ':', '$', '*']), "{words}: {answer}");
        answer
    }

    /// One of the numbers of `INFO stats`.
    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.command("INFO stats");
        let value = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        value.trim().parse().unwrap()
    }

    /// How often a command was called, by clients and scripts.
    pub fn command_calls(&self, name: &str) -> u64 {
        let stats = self.command("INFO commandstats");
        let calls = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:calls=")));
        calls.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
    }

    /// What it has on its disk now.
    pub fn save(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let files = fs::read_dir(self.directory.path().join("appendonlydir")).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    /// Gives it, while it is down, what it had on its disk before.
    pub fn put_back(&self, saved: &[(PathBuf, Vec<u8>)]) {
        saved.iter().for_each(|(path, content)| fs::write(path, content).unwrap());
    }

    /// Sends its process a signal, such as `STOP`.
    pub fn signal(&self, signal: &str) {
        let process = self.server.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &process]).status().unwrap().success());
    }

    /// Starts it again, on what it has on its disk; fails if it ends, as where another has the
    /// port.
    pub fn restart(&mut self) -> io::Result<()> {
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--appendonly", "yes"])
            .args(["--repl-diskless-sync-delay", "0", "--appendfsync", "always"])
            .args(["--dir", self.directory.path().to_str().unwrap()])
            .args(self.settings);
        self.listens(&mut command)
    }

    fn listens(&mut self, command: &mut Command) -> io::Result<()> {
        let server = self.server.insert(command.stdout(Stdio::null()).spawn()?);
        let mut ended = false;
        eventually("the server listens", || {
            thread::yield_now();
            ended = server.try_wait().unwrap().is_some();
            ended || TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
        if ended { Err(io::Error::other("it has ended")) } else { Ok(()) }
    }

    /// Kills it, as by SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            server.wait().unwrap();
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
