//! Sessions that are picked up, and the passing of time.

use std::collections::BTreeSet;
use std::time::Duration;

use pinhole::core::kernel::{Firewall as _, SessionProgress, Simulated};
use pinhole::core::net::{Connection, Direction, Segment, Seq};
use pinhole::core::policy::{self, Policy};
use pinhole::core::script::{Conversation, endpoint};
use pinhole::core::time::Timestamp;
use pinhole::core::tracker::{Environment, Observer, SessionEvent, SessionNumber, Tracker};

use super::input::Input;

/// The lines of the two ends, whole and in pieces.
const TEXTS: [&str; 20] = [
    "PORT 10,0,0,1,15,161\r\n",
    "227 Entering Passive Mode (10,0,0,2,15,161).\r\n",
    "PASV\r\n",
    "EPSV\r\n",
    "229 Extended (|||4002|)\r\n",
    "USER ftp\r\n",
    "PASS x\r\n",
    "331 Password\r\n",
    "230 in\r\n",
    "220 hello\r\n",
    "530 no\r\n",
    "AUTH TLS\r\n",
    "234 go\r\n",
    "REIN\r\n",
    "\r\n",
    "\n",
    "PORT 10,0,0,",
    "1,15,162\r\n",
    "GET / HTTP/1.1\r\n",
    "200 ok\r\n",
];

/// A session that is read from its middle on, for which the kernel has recorded some progress or none: pinholes are
/// announced in lines whose start was read, by an end that was logged in then.
pub fn pickup(data: &[u8]) {
    let mut input = Input::new(data);
    let known =
        [SessionProgress::Unknown, SessionProgress::Ftp, SessionProgress::LoggedIn, SessionProgress::Unreadable];
    let known = known[usize::from(input.byte() & 3)];
    let policy = policy::parse("policy.yaml", "control_ports: [21]").expect("a good policy").policy;
    let mut firewall = Simulated::new(policy.control_ports.as_slice().iter().copied());
    firewall.treat_all_as_established();
    let mut talk = Conversation::new(endpoint("10.0.0.1:4000"), endpoint("10.0.0.2:21"), u32::MAX - 40, 9);
    firewall.record(&Connection::direct(talk.flow()), known);
    let mut tracker = Tracker::default();
    let mut now = Timestamp::from_secs(1);
    let mut heard = DeliveryStatus { known, read: Default::default(), has_let_in: false };
    while !input.is_empty() {
        let what = input.byte();
        let who = if what & 1 == 0 { Direction::FromClient } else { Direction::FromServer };
        let packet = match what >> 1 & 15 {
            15 => {
                now = now + Duration::from_secs(u64::from(input.byte()) * 40);
                continue;
            }
            14 => {
                talk.loses(who, input.text(&TEXTS).len());
                continue;
            }
            _ => talk.says(who, input.text(&TEXTS)),
        };
        let segment = Segment::parse(&packet).expect("a segment");
        let mut env = Environment { now, policy: &policy, firewall: &mut firewall, observer: &mut heard };
        tracker.advance(&mut env);
        let _ = tracker.handle(&segment, &mut env);
        assert_eq!(tracker.expectations(), firewall.pinholes());
    }
}

/// The bytes read of each end since the last gap, the client first.
struct DeliveryStatus {
    known: SessionProgress,
    read: [(Seq, Vec<u8>); 2],
    /// The server has accepted a login, in this session or in one that was forgotten.
    has_let_in: bool,
}

impl Observer for DeliveryStatus {
    fn observe(&mut self, _: Timestamp, _: SessionNumber, news: &SessionEvent<'_>) {
        match news {
            SessionEvent::Began { .. } => self.read = Default::default(),
            SessionEvent::Opened { mode, .. } => {
                assert!(
                    matches!(self.known, SessionProgress::Ftp | SessionProgress::LoggedIn),
                    "opened where {:?}",
                    self.known
                );
                let [(_, client), (_, server)] = &self.read;
                let text = String::from_utf8_lossy(if mode.is_active() { client } else { server });
                let behind = text.split_once('\n').map(|(_, behind)| behind).unwrap_or_default();
                let is_announced = ["15,161", "15,162", "4002"].iter().any(|port| behind.contains(port));
                assert!(is_announced, "opened in {text:?}, and its first line may have begun before");
                let is_logged_in = self.known == SessionProgress::LoggedIn || self.has_let_in;
                assert!(is_logged_in, "opened, and nobody has logged in");
            }
            _ => {}
        }
    }

    fn read(&mut self, _: SessionNumber, direction: Direction, place: Seq, bytes: &[u8]) {
        let (next, read) = &mut self.read[usize::from(direction == Direction::FromServer)];
        if *next != place {
            read.clear();
        }
        read.extend(bytes);
        self.has_let_in |= read.windows(4).any(|code| code == b"230 ");
        *next = place + bytes.len();
    }
}

/// Sessions and pinholes while time passes: nothing outlives its time, every deadline passes once it has come, and the
/// limits hold.
pub fn time(data: &[u8]) {
    const CLIENTS: usize = 6;
    let mut input = Input::new(data);
    let policy = "
        control_ports: [21]
        limits: { sessions: 4, pinholes: 3, idle: 10s }
        defaults: { timeout: 5s, login: optional }";
    let mut env = Clocked {
        tracker: Tracker::default(),
        policy: policy::parse("policy.yaml", policy).expect("a good policy").policy,
        firewall: Simulated::new([pinhole::core::net::Port::FTP]),
        now: Timestamp::from_secs(1),
        open: BTreeSet::new(),
    };
    let new = |client: usize| {
        let address = format!("10.0.0.{}:4000", client + 10);
        Conversation::new(endpoint(&address), endpoint("10.0.0.2:21"), 7, 9)
    };
    let mut talks: Vec<_> = (0..CLIENTS).map(new).collect();
    while !input.is_empty() {
        let what = usize::from(input.byte());
        let client = what % CLIENTS;
        let address = 10 + client;
        match what / CLIENTS % 10 {
            0 | 1 => {
                talks[client] = new(client);
                for packet in talks[client].handshake() {
                    env.takes(&packet);
                }
                env.takes(&talks[client].says(Direction::FromServer, "220 hello\r\n"));
            }
            2..=4 => {
                let port = input.byte();
                let line = format!("PORT 10,0,0,{address},100,{port}\r\n");
                env.takes(&talks[client].says(Direction::FromClient, line));
            }
            5 => env.takes(&talks[client].says(Direction::FromServer, "200 ok\r\n")),
            6 => env.takes(&talks[client].closes(Direction::FromClient)),
            7 => env.takes(&talks[client].resets(Direction::FromServer)),
            8 => env.passes(Duration::from_millis(u64::from(input.byte()) * 100)),
            _ => {
                // To the next deadline, or a moment before it.
                if let Some(due) = env.tracker.next_deadline() {
                    let early = Duration::from_nanos(u64::from(input.byte() & 1));
                    env.passes(due.before(early).since(env.now));
                }
            }
        }
    }
    // An idle session and one that has ended are both forgotten.
    env.passes(Duration::from_secs(10 * 24 * 3600));
    assert_eq!((env.tracker.sessions(), env.tracker.expectations()), (0, 0));
    assert_eq!(env.tracker.next_deadline(), None);
}

struct Clocked {
    tracker: Tracker,
    policy: Policy,
    firewall: Simulated,
    now: Timestamp,
    /// Which pinholes are open, according to the events.
    open: BTreeSet<String>,
}

impl Clocked {
    fn with(&mut self, act: impl FnOnce(&mut Tracker, &mut Environment<'_, Simulated, Open<'_>>)) {
        let Self { tracker, policy, firewall, now, open } = self;
        act(tracker, &mut Environment { now: *now, policy, firewall, observer: &mut Open(open) });
        let sessions = tracker.sessions();
        assert!(sessions <= policy.limits.sessions.get() as usize, "{sessions} sessions");
        assert!(tracker.expectations() <= policy.limits.pinholes.get() as usize);
        assert_eq!(tracker.expectations(), firewall.pinholes());
        assert_eq!(tracker.expectations(), open.len(), "every pinhole that opened has closed, expired or is there");
    }

    fn passes(&mut self, time: Duration) {
        self.now = self.now + time;
        let now = self.now;
        self.with(|tracker, env| {
            tracker.advance(env);
        });
        assert!(self.tracker.next_deadline().is_none_or(|due| due > now), "what is due has happened");
        assert!(self.tracker.pinholes().all(|(.., expectation)| expectation.expires() > now));
    }

    fn takes(&mut self, packet: &[u8]) {
        let segment = Segment::parse(packet).expect("a segment");
        self.passes(Duration::ZERO);
        self.with(|tracker, env| drop(tracker.handle(&segment, env)));
    }
}

/// Records which pinholes open and close. A repeated announcement replaces the existing pinhole.
struct Open<'a>(&'a mut BTreeSet<String>);

impl Observer for Open<'_> {
    fn observe(&mut self, _: Timestamp, _: SessionNumber, event: &SessionEvent<'_>) {
        let Self(open) = self;
        match event {
            SessionEvent::Opened { expectation, .. } => {
                open.insert(format!("{} {}", expectation.from, expectation.to));
            }
            SessionEvent::Expired(expectation)
            | SessionEvent::Dropped(expectation)
            | SessionEvent::Closed { expectation, .. } => {
                let was_open = open.remove(&format!("{} {}", expectation.from, expectation.to));
                assert!(was_open, "{expectation} closes and was not open");
            }
            _ => {}
        }
    }
}
