//! What happened when an announcement was refused, and what to do about it, for the log and the text of a replay.

use std::fmt;

use crate::core::expectation::Refusal;
use crate::core::ftp::Mode;
use crate::core::net::PortRange;
use crate::core::policy::Terms;

/// How many ranges of `data_ports` are printed.
const MAX_RANGES: usize = 8;

/// The explanation of a refusal.
pub(super) struct Explanation<'a> {
    pub(super) why: Refusal,
    /// How the refused address was announced; `None` for the port range of an encrypted session.
    pub(super) mode: Option<Mode>,
    pub(super) terms: &'a Terms,
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { why, mode, terms } = *self;
        let is_active = mode.is_some_and(Mode::is_active);
        let ports = Ports(terms.data_ports.as_slice());
        match why {
            Refusal::BadSyntax => f.write_str("its address cannot be read: the client or the server is broken"),
            Refusal::ThirdParty if is_active => f.write_str(
                "its address is not the client's own: it asks for a connection to another host, or a NAT router in front of \
                 the client did not rewrite the address (use passive mode)",
            ),
            Refusal::ThirdParty => f.write_str(
                "its address is not the server's own (correct the address that the server is configured to announce: \
                 `pasv_address`, `MasqueradeAddress` or the like; where you cannot, set `passive_address: repair`)",
            ),
            Refusal::WrongFamily => {
                f.write_str("its address is of the other IP version than the session (use EPSV or EPRT, or another client)")
            }
            Refusal::PortZero => f.write_str("its port is 0: the client or the server is broken"),
            Refusal::LowPort if is_active => {
                write!(f, "its port is below 1024 and not in `data_ports` ({ports}): no FTP client announces such a port")
            }
            Refusal::LowPort => write!(
                f,
                "its port is below 1024 and not in `data_ports` ({ports}) (give the server a passive range of these ports)"
            ),
            Refusal::PortNotAllowed if is_active => write!(
                f,
                "its port is not in `data_ports` ({ports}), which has to include the ports that this client announces (use \
                 passive mode, or give the client a rule of its own)"
            ),
            Refusal::PortNotAllowed => write!(
                f,
                "its port is not in `data_ports` ({ports}) (give the server's passive range and `data_ports` the same ports)"
            ),
            Refusal::KnownService if is_active => f.write_str(
                "its port belongs to a well-known service (the client's next attempt takes another port; if it never does, \
                 this is an attack)",
            ),
            Refusal::KnownService => f.write_str(
                "its port belongs to a well-known service (give the server a passive range without it; if no such service \
                 can be there, name the port by itself in `data_ports`)",
            ),
            Refusal::ModeDenied => {
                f.write_str("the policy's `modes` (")?;
                for (index, allowed) in Mode::ALL.into_iter().filter(|mode| terms.modes.contains(*mode)).enumerate() {
                    write!(f, "{}{}", if index == 0 { "" } else { ", " }, allowed.command())?;
                }
                write!(f, ") do not include {}", mode.map_or("it", Mode::command))
            }
            Refusal::NotAskedFor => f.write_str(
                "the client did not send the command that this reply would answer (the client's next attempt works; if it \
                 never does, this is an attack)",
            ),
            Refusal::NotLoggedIn => {
                f.write_str("no user is logged in (log in; a server that needs no login needs `login: optional`)")
            }
            Refusal::AfterEpsvAll => f.write_str("the client sent EPSV ALL before (use another client)"),
            Refusal::TooMany => write!(
                f,
                "`pinholes_per_session` ({}), `limits: pinholes_per_client` or `limits: pinholes` is reached, or too many \
                 commands have no reply yet (find out who opens so many before you raise a limit)",
                terms.pinholes_per_session
            ),
            Refusal::NotFtp => f.write_str("the session is not FTP"),
            Refusal::ByRule if terms.denies_all() => f.write_str("its rule has `action: deny`"),
            Refusal::ByRule => {
                write!(f, "`commands: {{ deny }}` of the policy names {}", mode.map_or("it", Mode::command))
            }
            Refusal::NotOpened => f.write_str("the kernel did not accept it (the line `the kernel: ...` says why)"),
            Refusal::NoPort => write!(
                f,
                "no free port of `data_ports` ({ports}) was found at the outside address (widen it, or shorten `timeout`)"
            ),
            Refusal::CannotRewrite => f.write_str(
                "the line needs another address (NAT, or `passive_address: repair`), but its length would change and the \
                 kernel cannot adjust the sequence numbers of this session, or part of the line has been sent already \
                 (reconnect)",
            ),
            Refusal::PickedUp => f.write_str(
                "the start of the session was not read, so it may not be FTP (reconnect; see `pickup` in the policy)",
            ),
            Refusal::Ambiguous => f.write_str(
                "the line can be read in more than one way: bytes before it passed unread, it ends in a bare LF or follows \
                 one, or it contains CR, NUL, Telnet or urgent data (try again); or a reply to the client listed files \
                 (STAT with a path), and a file's name may look like this line (reconnect)",
            ),
            Refusal::SessionOver => f.write_str("the session has ended"),
            Refusal::DataConnection => f.write_str(
                "the session may be a data connection: it comes from port 20, or its client is the server of a session with \
                 this server as its client, who may have it send a file that looks like a dialogue (use passive mode)",
            ),
            Refusal::Forged => f.write_str(
                "the packets of both ends come from one interface, and by the routes one of the ends is not behind it: a \
                 host there sends in its name (`ip route get ADDRESS` prints where each end should be)",
            ),
            Refusal::NotListening => f.write_str("no socket of this host listens there"),
            Refusal::OtherService => f.write_str(
                "its socket does not belong to the FTP service (it is another program's; or, if transfers fail, name the \
                 service: `tls: service unit NAME`)",
            ),
            Refusal::NotOnThisHost => f.write_str(
                "neither end of the session is a socket of this host, so the kernel cannot tell which service has the data \
                 connection (use `tls: range` with the server's passive range)",
            ),
            Refusal::SharedCgroup => f.write_str(
                "the session's socket was made outside a cgroup of the FTP service: by the service manager (socket activation), \
                 or where there are no units (name the unit or the user: `tls: service unit NAME`, `tls: service uid NUMBER`)",
            ),
            Refusal::Zone => f.write_str(
                "the control connection is in a conntrack zone, where another host may have the same address (leave FTP in \
                 the default zone)",
            ),
        }
    }
}

/// Ranges of ports: `1024-65535`, or `3306, 50000-50100`.
struct Ports<'a>(&'a [PortRange]);

impl fmt::Display for Ports<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().take(MAX_RANGES).enumerate() {
            write!(f, "{}{range}", if index == 0 { "" } else { ", " })?;
        }
        f.write_str(if self.0.len() > MAX_RANGES { ", ..." } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy;

    fn explained(text: &str, why: Refusal, mode: Mode) -> String {
        let terms = policy::parse("policy.yaml", text).expect("a good policy").policy.defaults;
        Explanation { why, mode: Some(mode), terms: &terms }.to_string()
    }

    #[test]
    fn foreign_address_of_a_server_points_to_its_configuration() {
        let text = explained("{}", Refusal::ThirdParty, Mode::Pasv);
        assert!(text.contains("`pasv_address`"), "{text}");
        let text = explained("{}", Refusal::ThirdParty, Mode::Port);
        assert!(text.contains("use passive mode") && !text.contains("pasv_address"), "{text}");
    }

    #[test]
    fn refused_port_is_explained_with_the_ports_of_the_policy() {
        let ranges = "defaults: { data_ports: [3306, 50000-50100] }";
        for (why, mode) in [(Refusal::PortNotAllowed, Mode::Epsv), (Refusal::PortNotAllowed, Mode::Port)] {
            let text = explained(ranges, why, mode);
            assert!(text.contains("`data_ports` (3306, 50000-50100)"), "{text}");
        }
        let many: Vec<String> = (1..=20).map(|port| (port * 2000).to_string()).collect();
        let text =
            explained(&format!("defaults: {{ data_ports: [{}] }}", many.join(", ")), Refusal::LowPort, Mode::Pasv);
        assert!(text.contains("(2000, 4000, 6000, 8000, 10000, 12000, 14000, 16000, ...)"), "{text}");
    }

    #[test]
    fn refused_command_is_explained_with_what_the_policy_allows() {
        let text = explained("defaults: { modes: [PASV, EPSV] }", Refusal::ModeDenied, Mode::Port);
        assert_eq!(text, "the policy's `modes` (PASV, EPSV) do not include PORT");
        let text = explained("defaults: { commands: { deny: [PORT] } }", Refusal::ByRule, Mode::Port);
        assert_eq!(text, "`commands: { deny }` of the policy names PORT");
    }

    #[test]
    fn no_explanation_advises_to_allow_third_parties() {
        for why in Refusal::ALL {
            for mode in Mode::ALL {
                let text = explained("{}", why, mode);
                assert!(!text.contains("third_party") && !text.contains("pickup: trust"), "{text}");
            }
        }
    }
}
