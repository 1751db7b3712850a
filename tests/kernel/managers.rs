//! Hosts whose firewall ufw, firewalld, iptables-persistent or fail2ban manages, with these programs as Debian ships them.
//!
//! Needs root and the lab's Debian with these programs.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::daemon::{Daemon, TIMEOUT};
use crate::debian::Debian;
use crate::filtered_topology::{CONTENT, FILE, modes, some_transfers};
use lab::mini::{MiniClient, MiniOptions, MiniServer};
use lab::{ClientKind, Family, Server, ServerKind, ServerOptions, Shape, Task, Topology, Visit};
use nix::sys::signal::Signal;
use pinhole::core::ftp::Mode;

/// How long to wait for something that must not happen.
const SHORT: Duration = Duration::from_millis(300);
/// With `native`, ufw and firewalld admit data connections by themselves.
const SETS: &str = "mechanism: sets\n";
const PASSIVE_PORTS: std::ops::RangeInclusive<u16> = 50_000..=50_999;

/// A host with the firewall, on the server's own host or as a gateway, and a client.
struct Host {
    debian: Debian,
    topology: Topology,
    _servers: [Server; 2],
}

impl Host {
    fn new() -> Self {
        Self::with(Shape::ServerHost)
    }

    fn with(shape: Shape) -> Self {
        let topology = Topology::new(shape).unwrap_or_else(|error| panic!("{error}"));
        let start = |family| {
            let options =
                ServerOptions { passive_ports: PASSIVE_PORTS, ..ServerOptions::on(topology.target.of(family)) };
            let server = ServerKind::Vsftpd.start(&topology.server.namespace, &options);
            let server = server.unwrap_or_else(|error| panic!("{error}"));
            server.place(FILE, CONTENT).unwrap_or_else(|error| panic!("{error}"));
            server
        };
        let servers = Family::ALL.map(start);
        let debian = Debian::start(&topology.firewall).unwrap_or_else(|error| panic!("{error}"));
        Self { debian, topology, _servers: servers }
    }

    fn run(&self, policy: &str) -> Daemon {
        Daemon::start(&self.topology.firewall, policy).unwrap_or_else(|error| panic!("{error}"))
    }

    fn server(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.topology.target.of(family), 21)
    }

    fn as_client<T: Send>(&self, work: impl FnOnce() -> lab::Result<T> + Send) -> lab::Result<T> {
        self.topology.client.namespace.run(work).and_then(|done| done)
    }

    #[track_caller]
    fn assert_transfers_work(&self) {
        for family in Family::ALL {
            for mode in modes(family) {
                let done = self.as_client(|| some_transfers(self.server(family), *mode));
                done.unwrap_or_else(|error| panic!("{family}, {mode}: {error}"));
                let visit = Visit {
                    namespace: &self.topology.client.namespace,
                    server: self.server(family),
                    mode: *mode,
                    announce: None,
                    tls: None,
                    timeout: TIMEOUT,
                };
                let fetched = ClientKind::Curl.visit(&visit, &[Task::Download(FILE)]);
                assert_eq!(fetched.unwrap_or_else(|error| panic!("{family}, {mode}: {error}")), [CONTENT]);
            }
        }
    }

    /// The client logs in, and its passive data connection does not come about.
    #[track_caller]
    fn assert_passive_hangs(&self) {
        for (family, mode) in [(Family::V4, Mode::Pasv), (Family::V6, Mode::Epsv)] {
            let connected = self.as_client(|| {
                let mut client = MiniClient::log_in(self.server(family), TIMEOUT)?;
                let announced = client.passive(mode)?;
                Ok(TcpStream::connect_timeout(&announced, SHORT).is_ok())
            });
            assert!(!connected.unwrap_or_else(|error| panic!("{error}")), "{family}: nothing hangs");
        }
    }

    /// A pinhole that opens before some commands admits a connection after them.
    #[track_caller]
    fn assert_pinhole_survives(&self, commands: &str) {
        let connected = self.as_client(|| {
            let mut client = MiniClient::log_in(self.server(Family::V4), TIMEOUT)?;
            let announced = client.passive(Mode::Pasv)?;
            self.debian.sh(commands);
            // Where the commands remove the accept rule for a moment, the SYN is sent again.
            client.connect_data(announced).map(drop)
        });
        connected.unwrap_or_else(|error| panic!("{commands}: {error}"));
    }

    /// The lines of `pinhole check` that contain a text.
    fn check(&self, policy: &str, about: &str) -> Vec<String> {
        fs::write(self.debian.path("/etc/pinhole/policy.yaml"), policy).expect("root may write it");
        let done = self.debian.try_sh("PINHOLE_SOCKET=/run/none.sock pinhole check --host /etc/pinhole/policy.yaml");
        let text = String::from_utf8_lossy(&done.stdout);
        text.lines().filter(|line| line.contains(about)).map(str::to_owned).collect()
    }

    /// The only such line.
    #[track_caller]
    fn only(&self, policy: &str, about: &str) -> String {
        let lines = self.check(policy, about);
        assert_eq!(lines.len(), 1, "{about}: {lines:#?}");
        lines.concat()
    }

    #[track_caller]
    fn wait_until_on_top(&self, command: &str, line: usize) {
        let is_on_top = || {
            let rules = self.debian.sh(command);
            Ok(rules.lines().nth(line).is_some_and(|rule| rule.contains("pinhole: announced"))
                && rules.matches("pinhole: announced").count() == 1)
        };
        lab::wait_until("the accept rule to be on top", TIMEOUT, is_on_top)
            .unwrap_or_else(|error| panic!("{error}: {}", self.debian.sh(command)));
    }

    #[track_caller]
    fn wait_until_on_top_of_input(&self) {
        self.wait_until_on_top("iptables -S INPUT", 1);
        self.wait_until_on_top("ip6tables -S INPUT", 1);
    }
}

/// The commands of a page below a heading.
fn documented(page: &str, heading: &str) -> String {
    let (_, section) = page.split_once(heading).unwrap_or_else(|| panic!("no {heading}"));
    let (_, commands) = section.split_once("```sh\n").expect("it has commands");
    commands.split("```").next().unwrap_or_default().to_owned()
}

const UFW: &str = include_str!("../../docs/howto/ufw.md");
const FIREWALLD: &str = include_str!("../../docs/howto/firewalld.md");
const NFTABLES: &str = include_str!("../../docs/howto/nftables.md");

/// What stands between the first backquotes after a text.
#[track_caller]
fn quoted<'a>(line: &'a str, after: &str) -> &'a str {
    let rest = line.split_once(after).unwrap_or_else(|| panic!("no {after:?} in {line}")).1;
    rest.split('`').nth(1).unwrap_or_else(|| panic!("nothing is quoted in {line}"))
}

#[test]
fn advised_and_documented_ufw_lines_admit_transfers() {
    let host = Host::new();
    host.debian.sh("ufw allow 21/tcp; ufw --force enable");
    let commands = documented(UFW, "## The rule");
    let mut daemon = host.run(SETS);
    host.assert_passive_hangs();
    assert!(host.only(SETS, "managed by").ends_with("managed by ufw"));
    for (six, family) in [("", "ip"), ("6", "ip6")] {
        let warning = host.only(SETS, &format!("warning  chain {family} filter INPUT"));
        let file = format!("/etc/ufw/before{six}.rules");
        assert!(warning.contains(&format!("to {file}, below the line for RELATED,ESTABLISHED")), "{warning}");
        assert!(commands.contains(&format!("a {}' {file}\n", quoted(&warning, "; add"))), "{warning}\n{commands}");
    }
    host.debian.sh(&commands);
    assert_eq!(host.check(SETS, "warning  "), [""; 0]);
    host.assert_transfers_work();
    for command in ["ufw reload", "ufw disable; ufw --force enable", "ufw allow 22/tcp"] {
        host.assert_pinhole_survives(command);
        host.assert_transfers_work();
    }
    daemon.end(Signal::SIGTERM).expect("it ends");
    host.debian.sh("iptables-save | grep -q 0x10000000");
    host.assert_passive_hangs();
}

#[test]
fn ufw_works_with_the_accept_rule_in_its_chain() {
    let host = Host::new();
    host.debian.sh("ufw allow 21/tcp; ufw --force enable");
    let mut daemon = host.run("admit: [ip filter INPUT, ip6 filter INPUT]\n");
    host.wait_until_on_top_of_input();
    host.assert_transfers_work();
    for command in ["ufw reload", "ufw disable", "ufw --force enable", "ufw allow 22/tcp", "ufw delete allow 22/tcp"] {
        host.debian.sh(command);
        host.wait_until_on_top_of_input();
        host.assert_transfers_work();
    }
    assert!(host.debian.sh("ufw status").contains("21/tcp"));
    host.debian.sh("iptables-save | grep -q ufw-user-input; ip6tables-save | grep -q ufw6-user-input");
    host.assert_pinhole_survives("ufw reload");
    daemon.end(Signal::SIGTERM).expect("it ends");
    host.debian.sh("! iptables-save | grep pinhole; ufw reload");
}

/// firewalld, as Debian configures it, with port 21 open.
fn with_firewalld() -> Host {
    let host = Host::new();
    host.debian.start_firewalld();
    host.debian.sh(&documented(FIREWALLD, "# A host"));
    host
}

const FIREWALLD_ADMIT: &str = "admit: [inet firewalld filter_INPUT]\n";

#[test]
fn firewalld_that_owns_its_table_is_named() {
    let host = with_firewalld();
    let problem = host.only(FIREWALLD_ADMIT, "problem  ");
    let run = "PINHOLE_SOCKET=/run/none.sock pinhole run --policy /etc/pinhole/policy.yaml";
    let run = host.debian.try_sh(run);
    let refused = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{refused}");
    for part in
        ["`inet firewalld filter_INPUT`", "firewalld (process ", "owns table inet firewalld", "NftablesTableOwner=no"]
    {
        assert!(refused.contains(part), "{part} is not in {refused}");
    }
    assert!(!host.topology.firewall.nft_output(&["list", "tables"]).expect("nft lists").contains("pinhole"));
    assert!(problem.contains("owns table inet firewalld") && problem.contains("NftablesTableOwner=no"), "{problem}");
    let warning = host.only(SETS, "warning  ");
    assert!(
        warning.contains("chain inet firewalld filter_INPUT") && warning.contains("NftablesTableOwner=no"),
        "{warning}"
    );
    assert!(host.only(SETS, "managed by").ends_with("managed by firewalld"));
}

#[test]
fn firewalld_without_owner_admits_by_the_accept_rule() {
    let host = with_firewalld();
    host.debian.sh(&format!("systemctl() {{ :; }}\n{}", documented(FIREWALLD, "## Let Pinhole add")));
    host.debian.stop_firewalld();
    host.debian.start_firewalld();
    {
        let _daemon = host.run(SETS);
        host.assert_passive_hangs();
        let warning = host.only(SETS, "warning  ");
        assert!(warning.contains("`admit: [inet firewalld filter_INPUT]`"), "{warning}");
    }
    let _daemon = host.run(FIREWALLD_ADMIT);
    assert_eq!(host.check(FIREWALLD_ADMIT, "warning  "), [""; 0]);
    let on_top = || host.wait_until_on_top("nft list chain inet firewalld filter_INPUT", 3);
    on_top();
    host.assert_transfers_work();
    for command in ["firewall-cmd --reload", "firewall-cmd --complete-reload", "firewall-cmd --add-port=22/tcp"] {
        host.assert_pinhole_survives(command);
        on_top();
        host.assert_transfers_work();
    }
    host.debian.stop_firewalld();
    host.debian.start_firewalld();
    on_top();
    host.assert_transfers_work();
}

#[test]
fn firewalld_with_owner_admits_by_open_range_and_direct_rule() {
    let host = with_firewalld();
    host.debian.sh(&documented(FIREWALLD, "## Or open a range"));
    let unannounced = SocketAddr::new(host.server(Family::V4).ip(), 50_500);
    let _other = MiniServer::start(&host.topology.firewall, unannounced, MiniOptions::default()).expect("it starts");
    let assert_closed = || {
        let reached = host.as_client(|| Ok(TcpStream::connect_timeout(&unannounced, SHORT).is_ok()));
        assert!(!reached.expect("the client may try"), "nobody has announced {unannounced}");
    };
    // Without Pinhole, no port of the range is open.
    host.assert_passive_hangs();
    assert_closed();
    let _daemon = host.run(SETS);
    host.assert_transfers_work();
    for command in ["firewall-cmd --reload", "firewall-cmd --complete-reload"] {
        host.assert_pinhole_survives(command);
        host.assert_transfers_work();
        assert_closed();
    }
}

#[test]
fn gateway_of_ufw_admits_by_lines_in_its_forward_chains() {
    let host = Host::with(Shape::Gateway);
    host.debian.sh("ufw route allow proto tcp to any port 21; ufw --force enable");
    let _daemon = host.run(SETS);
    host.assert_passive_hangs();
    // The documented commands, with the chains of a gateway.
    let commands = documented(UFW, "## The rule").replace("-before-input", "-before-forward");
    host.debian.sh(&commands);
    host.assert_transfers_work();
    host.assert_pinhole_survives("ufw reload");
}

#[test]
fn gateway_of_firewalld_admits_by_the_accept_rule() {
    let host = Host::with(Shape::Gateway);
    host.debian.sh("sed -i 's/^NftablesTableOwner=.*/NftablesTableOwner=no/' /etc/firewalld/firewalld.conf");
    host.debian.start_firewalld();
    host.debian.sh("firewall-cmd --permanent --zone internal --add-interface clients
         firewall-cmd --permanent --zone dmz --add-interface servers
         firewall-cmd --permanent --new-policy ftp
         firewall-cmd --permanent --policy ftp --add-ingress-zone internal
         firewall-cmd --permanent --policy ftp --add-egress-zone dmz
         firewall-cmd --permanent --policy ftp --add-port 21/tcp
         firewall-cmd --reload");
    {
        let _daemon = host.run(SETS);
        host.assert_passive_hangs();
    }
    let _daemon = host.run("admit: [inet firewalld filter_FORWARD]\n");
    host.assert_transfers_work();
    host.assert_pinhole_survives("firewall-cmd --reload");
    host.assert_transfers_work();
}

/// A host with the file of the page, which `systemctl` loads as nftables.service does.
fn with_nftables_conf() -> Host {
    let host = Host::new();
    let (_, file) = NFTABLES.split_once("/etc/nftables.conf:\n\n```text\n").expect("the page has the file");
    let file = file.split("```").next().expect("it ends");
    fs::write(host.debian.path("/etc/nftables.conf"), file).expect("root may write it");
    load_nftables_conf(&host, "## The file");
    host
}

/// Runs the commands of the page below a heading.
fn load_nftables_conf(host: &Host, heading: &str) {
    let unit = fs::read_to_string(host.debian.path("/usr/lib/systemd/system/nftables.service")).expect("Debian has it");
    let reload = unit.lines().find_map(|line| line.strip_prefix("ExecReload=")).expect("it can be reloaded");
    host.debian.sh(&format!("systemctl() {{ {reload}; }}\n{}", documented(NFTABLES, heading)));
}

#[test]
fn nftables_conf_may_be_loaded_again_beside_the_accept_rule() {
    const ADMIT: &str = "mechanism: sets\nadmit: [inet filter input]\n";
    let host = with_nftables_conf();
    assert_eq!(host.check(ADMIT, "warning  "), [""; 0]);
    let daemon = host.run(ADMIT);
    let on_top = || host.wait_until_on_top("nft list chain inet filter input", 3);
    on_top();
    host.assert_transfers_work();
    for command in ["nft -f /etc/nftables.conf", "nft flush ruleset; nft -f /etc/nftables.conf"] {
        host.assert_pinhole_survives(command);
        on_top();
        host.assert_transfers_work();
    }
    load_nftables_conf(&host, "## The file");
    on_top();
    daemon.wait_for_log("restored the table inet pinhole", 1);
    host.assert_transfers_work();
}

#[test]
fn documented_rule_in_nftables_conf_admits_transfers() {
    let host = with_nftables_conf();
    let daemon = host.run(SETS);
    host.assert_passive_hangs();
    let warning = host.only(SETS, "warning  ");
    let (_, shown) = NFTABLES.split_once("warning  ").expect("the page shows it");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&warning), words(&format!("warning  {}", shown.lines().next().unwrap_or_default())));
    load_nftables_conf(&host, "## Or write the rule yourself");
    drop(daemon);
    assert!(host.debian.sh("cat /etc/nftables.conf").contains(quoted(&warning, "; add")), "{warning}");
    assert_eq!(host.check(SETS, "warning  "), [""; 0]);
    let _daemon = host.run(SETS);
    host.assert_transfers_work();
    host.assert_pinhole_survives("nft -f /etc/nftables.conf");
    host.assert_transfers_work();
}

/// A default that drops, as an administrator types it.
const IPTABLES: &str = "for i in iptables ip6tables; do
    $i -A INPUT -i lo -j ACCEPT
    $i -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $i -A INPUT -p tcp -m multiport --dports 21,22 -j ACCEPT
    $i -P INPUT DROP
done
ip6tables -A INPUT -p ipv6-icmp -j ACCEPT";

#[test]
fn saved_accept_rule_admits_nothing_without_pinhole() {
    let host = Host::new();
    host.debian.sh(IPTABLES);
    host.debian.sh("netfilter-persistent save");
    let warning = host.only(SETS, "warning  chain ip filter INPUT");
    let command = quoted(&warning, "run").to_owned();
    assert!(warning.contains("and `netfilter-persistent save`"), "{warning}");
    let admit = "admit: [ip filter INPUT, ip6 filter INPUT]\n";
    {
        let mut daemon = host.run(admit);
        host.wait_until_on_top_of_input();
        host.debian.sh("netfilter-persistent save");
        daemon.kill().expect("it ends");
    }
    // The next boot.
    host.debian.sh("nft flush ruleset; netfilter-persistent start");
    host.wait_until_on_top_of_input();
    host.assert_passive_hangs();
    {
        let mut daemon = host.run(admit);
        host.wait_until_on_top_of_input();
        host.assert_transfers_work();
        daemon.end(Signal::SIGTERM).expect("it ends");
    }
    // The administrator's own rule instead.
    host.debian
        .sh(&format!("{command}; ip6{}; netfilter-persistent save", command.strip_prefix("ip").expect("iptables")));
    host.debian.sh("nft flush ruleset; netfilter-persistent start");
    assert_eq!(host.check(SETS, "warning  "), [""; 0]);
    let daemon = host.run(SETS);
    host.assert_transfers_work();
    // What `run` says at its start is the rule in the form of iptables.
    let said = daemon.child.output();
    assert!(
        said.contains("your own rule: `iptables -I CHAIN 1 -m conntrack --ctstate NEW,RELATED -m connmark"),
        "{said}"
    );
}

/// Starts fail2ban with one jail.
fn start_fail2ban(host: &Host, action: &str) {
    let jail = format!(
        "[DEFAULT]\nbackend = polling\nbanaction = {action}\n[sshd]\nenabled = false\n[ftp]\nenabled = true\n\
         filter = vsftpd\nport = ftp\nlogpath = /var/log/vsftpd.log\n"
    );
    fs::write(host.debian.path("/etc/fail2ban/jail.local"), jail).expect("root may write it");
    host.debian.sh("touch /var/log/vsftpd.log; fail2ban-client start >/dev/null");
    let is_up = || Ok(host.debian.try_sh("fail2ban-client status ftp").status.success());
    lab::wait_until("the jail to run", TIMEOUT, is_up).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn ban_of_fail2ban_holds_beside_the_accept_rule() {
    // The action, and whether it bans the client's data connections as well.
    for (action, bans_data) in
        [("iptables-multiport", false), ("nftables[type=multiport]", false), ("nftables[type=allports]", true)]
    {
        let host = Host::new();
        host.debian.sh(IPTABLES);
        let _daemon = host.run("admit: [ip filter INPUT, ip6 filter INPUT]\n");
        start_fail2ban(&host, action);
        let client = host.topology.client.addresses.v4;
        let server = host.server(Family::V4);
        let (refused, data) = host
            .as_client(|| {
                let mut session = MiniClient::log_in(server, TIMEOUT)?;
                let announced = session.passive(Mode::Pasv)?;
                host.debian.sh(&format!("fail2ban-client set ftp banip {client}"));
                let refused = TcpStream::connect_timeout(&server, SHORT).is_err();
                Ok((refused, TcpStream::connect_timeout(&announced, SHORT).is_ok()))
            })
            .unwrap_or_else(|error| panic!("{action}: {error}"));
        assert!(refused, "{action}: the client is banned");
        assert_eq!(data, !bans_data, "{action}: a pinhole that was open when the client was banned");
        assert!(host.check(SETS, "managed by").concat().contains("fail2ban"), "{action}");
        host.wait_until_on_top_of_input();
        host.debian.sh(&format!("fail2ban-client set ftp unbanip {client}"));
        host.assert_transfers_work();
        host.debian.sh("fail2ban-client stop >/dev/null");
        host.wait_until_on_top_of_input();
    }
}
