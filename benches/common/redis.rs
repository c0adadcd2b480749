//! A Redis server for a benchmark, and a distance to it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How far away the server of another machine is.
pub const AWAY: Duration = Duration::from_millis(1);

pub struct Server {
    process: Child,
    pub port: u16,
}

impl Server {
    pub fn start(directory: &Path) -> Option<Server> {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).ok()?.port();
        let mut server = Command::new("redis-server");
        server.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "yes"]);
        let process = server.arg("--dir").arg(directory).stdout(Stdio::null()).spawn().ok()?;
        let server = Server { process, port };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "the server listens");
            thread::sleep(Duration::from_millis(10));
        }
        Some(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }
}

/// The port of one who passes all on to a server, later.
pub fn at_a_distance(server: u16, away: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let port = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { return };
            let ends = [&client, &server].map(|end| {
                end.set_nodelay(true).expect("a TCP socket takes it");
                end.try_clone().expect("there is a descriptor")
            });
            let [back, on] = ends;
            thread::spawn(move || pass_on(client, on, away));
            thread::spawn(move || pass_on(server, back, Duration::ZERO));
        }
    });
    port
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, later: Duration) {
    let mut bytes = [0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        thread::sleep(later);
        if to.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}
