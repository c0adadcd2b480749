//! A primary and its replica behind one address, as a name or a virtual address leads to whoever is
//! the primary. The primary is killed, demoted, paused and cut off, at moments that a seed chooses,
//! while four processes push and two forward.
//!
//! Each push that has returned, and had waited for the replica, arrives, in the order of its
//! process. One process does not wait: what it loses with a primary, it is told.
//!
//! The processes are this program, started again as a child, and answer line by line.

mod common;

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{env, thread};

use common::redis::Redis;
use common::{LONG, Seeded, eventually, message, pass};
use mllp_client::Client;
use mllp_client::outbox::{Forwarder, Outbox, OutboxError, PushOptions, RedisOutbox};
use mllp_client::testing::Receiver;

const BLOWS: usize = 100;
const PUSHERS: usize = 4;
/// The pusher that does not wait for the replica.
const HASTY: usize = 3;
const EXCHANGE: Duration = Duration::from_millis(500);
const DESTINATION: &str = "failover";

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["push", url, who] => push(url, who.parse().unwrap()),
        ["forward", url, endpoint] => forward(url, endpoint),
        [.., "--list"] | ["--list", ..] => println!("what_was_replicated_survives_fail_over: test"),
        _ => {
            what_was_replicated_survives_fail_over();
            println!("1 passed, 0 failed");
        }
    }
}

fn open(url: &str) -> RedisOutbox {
    let mut opened = None;
    eventually("the server answers", || {
        opened = RedisOutbox::open(url, DESTINATION).ok();
        opened.is_some()
    });
    opened.unwrap().lease(EXCHANGE * 6 / 5).timeout(2 * EXCHANGE)
}

fn said(line: &str) {
    let mut answers = io::stdout().lock();
    answers.write_all(format!("{line}\n").as_bytes()).unwrap();
    answers.flush().unwrap();
}

/// Whether the parent has closed standard input: it is to end.
fn told_to_end() -> Arc<AtomicBool> {
    let ends = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&ends);
    thread::spawn(move || {
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
        told.store(true, Ordering::SeqCst);
    });
    ends
}

/// Pushes one message after the other, each until it is known to be stored, under a key of its own.
fn push(url: &str, who: usize) {
    let outbox = open(url).wait_for_replicas(u32::from(who != HASTY));
    let ends = told_to_end();
    for number in 0.. {
        let id = format!("P{who}-{number}");
        loop {
            if ends.load(Ordering::SeqCst) {
                return;
            }
            match outbox.push_with(message(&id).as_bytes(), &PushOptions::new().key(&id)) {
                Ok(_) => {
                    said(&format!("ok {number}"));
                    break;
                }
                Err(OutboxError::StorageReplaced { .. }) => {
                    said("told");
                    let _ = outbox.go_on();
                }
                Err(_) => {}
            }
            thread::park_timeout(Duration::from_millis(1));
        }
        thread::park_timeout(Duration::from_micros(300));
    }
}

fn forward(url: &str, endpoint: &str) {
    let outbox = open(url);
    let ends = told_to_end();
    let client = Client::builder(endpoint).timeout(EXCHANGE).build().unwrap();
    let moment = Duration::from_millis(5);
    let forwarder = Forwarder::builder(outbox.clone(), client).initial_delay(moment).max_delay(8 * moment);
    let forwarder = forwarder.start().unwrap();
    loop {
        if let Err(OutboxError::StorageReplaced { .. }) = outbox.pending() {
            said("told");
            let _ = outbox.go_on();
        }
        if ends.load(Ordering::SeqCst) && forwarder.drain(EXCHANGE).is_ok_and(|drained| drained) {
            forwarder.stop(LONG);
            return;
        }
        thread::park_timeout(moment);
    }
}

/// One address that leads to one server after the other.
struct Address {
    port: u16,
    leads_to: Arc<AtomicU16>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Address {
    fn of(server: &Redis) -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (leads_to, open) = (Arc::new(AtomicU16::new(server.port())), Arc::<Mutex<Vec<TcpStream>>>::default());
        let (target, lines) = (Arc::clone(&leads_to), Arc::clone(&open));
        thread::spawn(move || {
            for client in listener.incoming().map(Result::unwrap) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", target.load(Ordering::SeqCst))) else { continue };
                for line in [&client, &server] {
                    line.set_nodelay(true).unwrap();
                    lines.lock().unwrap().push(line.try_clone().unwrap());
                }
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                for (mut from, mut to) in [(client, server), back] {
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                        let _ = from.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Address { port, leads_to, open }
    }

    fn leads_to(&self, server: &Redis) {
        self.leads_to.store(server.port(), Ordering::SeqCst);
    }

    fn cut(&self) {
        self.open.lock().unwrap().drain(..).for_each(|line| drop(line.shutdown(Shutdown::Both)));
    }
}

/// A child, and the lines that it has answered.
struct Player {
    child: Child,
    answers: Arc<Mutex<Vec<String>>>,
}

impl Player {
    fn start(arguments: &[&str]) -> Player {
        let mut child = Command::new(env::current_exe().unwrap());
        let mut child = child.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = Arc::<Mutex<Vec<String>>>::default();
        let (said, output) = (Arc::clone(&answers), BufReader::new(child.stdout.take().unwrap()));
        thread::spawn(move || output.lines().for_each(|line| said.lock().unwrap().push(line.unwrap())));
        Player { child, answers }
    }

    fn ends(&mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn what_was_replicated_survives_fail_over() {
    let (Some(mut primary), Some(mut replica)) = (Redis::start(), Redis::start()) else { return };
    replica.follow(&primary);
    let address = Address::of(&primary);
    let url = format!("redis://127.0.0.1:{}/", address.port);
    let receiver = Receiver::accepting().unwrap();
    let mut pushers: Vec<_> = (0..PUSHERS).map(|who| Player::start(&["push", &url, &who.to_string()])).collect();
    let mut forwarders: Vec<_> = (0..2).map(|_| Player::start(&["forward", &url, &receiver.endpoint()])).collect();
    let mut chance = Seeded(7);
    let mut blows = [0; 4];
    for blow in 0..BLOWS {
        let wanted = receiver.received().len() + 20;
        eventually("messages arrive", || {
            thread::park_timeout(Duration::from_millis(1));
            receiver.received().len() >= wanted
        });
        pass(Duration::from_micros(chance.below(5_000) as u64));
        let kind = if blow % 2 == 0 { 3 } else { chance.below(3) };
        blows[kind] += 1;
        match kind {
            // It stops for a while, longer than some limits.
            0 => {
                primary.signal("STOP");
                pass(EXCHANGE / 8 * (1 + chance.below(6)) as u32);
                primary.signal("CONT");
            }
            1 => primary.kill(),
            // A demoted one goes on answering, as a replica.
            2 => {
                replica.command("REPLICAOF NO ONE");
                primary.follow(&replica);
            }
            _ => address.cut(),
        }
        if kind == 1 {
            replica.command("REPLICAOF NO ONE");
        }
        if matches!(kind, 1 | 2) {
            std::mem::swap(&mut primary, &mut replica);
            address.leads_to(&primary);
        }
        if kind == 1 {
            replica.restart().unwrap();
            replica.follow(&primary);
        }
    }
    pushers.iter_mut().for_each(Player::ends);
    forwarders.iter_mut().for_each(Player::ends);
    check(&pushers, &forwarders, &receiver.received(), blows);
}

fn check(pushers: &[Player], forwarders: &[Player], received: &[Vec<u8>], blows: [usize; 4]) {
    let ids = received.iter().map(|message| String::from_utf8_lossy(message).split('|').nth(9).unwrap().to_owned());
    let ids: Vec<String> = ids.collect();
    let arrived: HashSet<&String> = ids.iter().collect();
    let mut told = forwarders.iter().map(|forwarder| forwarder.answers.lock().unwrap().len()).sum::<usize>();
    let (mut pushed, mut lost) = (0, 0);
    for (who, pusher) in pushers.iter().enumerate() {
        let answers = pusher.answers.lock().unwrap();
        let mut is_told = false;
        // From the end: what was lost is told afterwards.
        for answer in answers.iter().rev() {
            let Some(number) = answer.strip_prefix("ok ") else {
                is_told = true;
                told += 1;
                continue;
            };
            pushed += 1;
            if !arrived.contains(&format!("P{who}-{number}")) {
                assert!(who == HASTY && is_told, "P{who}-{number} was pushed, and has not arrived");
                lost += 1;
            }
        }
        let own = format!("P{who}-");
        let numbers = ids.iter().filter_map(|id| id.strip_prefix(&own)?.parse::<usize>().ok());
        let mut seen = HashSet::new();
        let first_sights: Vec<usize> = numbers.filter(|number| seen.insert(*number)).collect();
        assert!(first_sights.is_sorted(), "P{who}: the order is kept");
    }
    let [pauses, kills, demotions, cuts] = blows;
    println!(
        "{pushed} pushed through {pauses} pauses, {kills} kills, {demotions} demotions and {cuts} cuts: {lost} lost, {told} \
         times told, {} repeats",
        ids.len() - arrived.len()
    );
    assert!(pushed > BLOWS);
}
