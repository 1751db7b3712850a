//! Rewrites lines of a session: addresses behind NAT, and commands that the policy denies. Opens the pinholes of
//! announcements, within the limits.

use super::client::ClientKey;
use super::context::SessionContext;
use super::expectations::PinholeEntry;
use super::port_search::PortSearch;
use super::quotas::PinholeQuota;
use super::{Environment, Observer};
use crate::core::expectation::{Expectation, Refusal};
use crate::core::ftp::notation::{Announced, Notation};
use crate::core::ftp::telnet::{begins_plainly, has_foreign_letters, possible_verbs};
use crate::core::ftp::{Line, Mode};
use crate::core::kernel::Firewall;
use crate::core::net::{Direction, Endpoint, Port, Seq};
use crate::core::policy::Tls;
use crate::core::seqadj::{DirectionRewriter, Edit, RewriteError, Verdict};
use crate::core::session::reassembly::OVERWRITTEN;
use crate::core::session::{Announcement, Session, Written};
use crate::core::tracker::admission;

/// An expectation, and the edit of the line that announces it, if the line has to change.
struct PlannedRewrite {
    expectation: Expectation,
    edit: Option<Edit>,
}

/// Whether a line may become longer or shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Any,
    Same,
}

/// How much of a line is searched for a denied command with each further segment of it, unless every server reads the same
/// line: the search takes several passes over the text, and a client can send each byte in a segment of its own.
const MAX_SEARCHED_AGAIN: usize = 128;

/// The part of a line that is searched for a denied command. `is_continued`: an earlier segment had its beginning.
fn searched(text: &[u8], is_continued: bool) -> &[u8] {
    match text.get(..MAX_SEARCHED_AGAIN) {
        // The beginning decides for nearly all lines.
        Some(beginning) if is_continued && !(begins_plainly(beginning) && begins_plainly(text)) => beginning,
        _ => text,
    }
}

impl<F: Firewall, O: Observer> SessionContext<'_, '_, F, O> {
    /// Opens an expectation of a session with NAT, and rewrites the line to its outside address.
    pub(super) fn expect_translated(
        &mut self,
        announcement: &Announcement<'_>,
        decided: Expectation,
    ) -> Result<Expectation, Refusal> {
        if let Some(written) = &announcement.written
            && self.was_replaced_before(announcement)
        {
            return self.expect_retransmitted(announcement, written, decided);
        }
        let mut search = self.search.seeded(self.number.get() << 16 | u64::from(decided.to.port.number()));
        let expected = self.expect_at_free_port(announcement, decided, &mut search);
        self.search = search;
        expected
    }

    /// Opens an expectation of a session without NAT whose server announces a wrong address, and rewrites the line. The
    /// kernel corrects sequence numbers with NAT only, so the line keeps its length.
    pub(super) fn expect_repaired(
        &mut self,
        announcement: &Announcement<'_>,
        expectation: Expectation,
    ) -> Result<Expectation, Refusal> {
        let (named, written) = announcement.named.zip(announcement.written.as_ref()).ok_or(Refusal::BadSyntax)?;
        let announced = admission::address_to_announce(&named, &expectation, true);
        let text = announced.and_then(|announced| Notation::of(announcement.mode).print(&announced));
        let edit = text.and_then(|text| same_length(announcement.mode, written, text.into_bytes()));
        let edit = edit.ok_or(Refusal::CannotRewrite)?;
        self.admit(announcement, &expectation)?;
        self.replace(edit).map_err(|_| {
            self.expectations.remove(expectation.from, expectation.to);
            self.env.firewall.close(&expectation);
            Refusal::CannotRewrite
        })?;
        Ok(expectation)
    }

    fn expect_at_free_port(
        &mut self,
        announcement: &Announcement<'_>,
        decided: Expectation,
        search: &mut PortSearch,
    ) -> Result<Expectation, Refusal> {
        let mut why = Refusal::CannotRewrite;
        for length in [Length::Any, Length::Same] {
            let PlannedRewrite { expectation, edit } = match self.choose(announcement, &decided, length, search) {
                Ok(choice) => choice,
                Err(refusal) if length == Length::Any => return Err(refusal),
                Err(_) => return Err(why),
            };
            self.admit(announcement, &expectation)?;
            let Some(edit) = edit else { return Ok(expectation) };
            match self.replace(edit) {
                Ok(()) => return Ok(expectation),
                Err(obstacle) => {
                    self.expectations.remove(expectation.from, expectation.to);
                    self.env.firewall.close(&expectation);
                    why = Refusal::CannotRewrite;
                    if obstacle == RewriteError::AlreadyPassed {
                        break;
                    }
                }
            }
        }
        Err(why)
    }

    /// Whether an earlier run rewrote this line.
    pub(super) fn was_replaced_before(&self, announcement: &Announcement<'_>) -> bool {
        let Some((written, rewriters)) = announcement.written.as_ref().zip(self.rewriters.as_deref()) else {
            return false;
        };
        rewriters.get(self.direction).was_replaced_before(written.line.start, written.line.end)
    }

    /// A line that an earlier run rewrote is retransmitted.
    fn expect_retransmitted(
        &mut self,
        announcement: &Announcement<'_>,
        written: &Written<'_>,
        decided: Expectation,
    ) -> Result<Expectation, Refusal> {
        let target = decided.target();
        let is_same = |expectation: &Expectation| {
            expectation.from == decided.from
                && expectation.to.address == decided.to.address
                && expectation.target() == target
        };
        let expectation = self.expectations.iter().map(|entry| entry.expectation).find(is_same).or_else(|| {
            let mapping = self.env.firewall.mapping_of(decided.from, decided.to)?;
            (mapping == decided.mapping).then_some(decided)
        });
        let is_repaired = self.is_repaired(announcement);
        let announced = announcement
            .named
            .zip(expectation)
            .and_then(|(named, it)| admission::address_to_announce(&named, &it, is_repaired));
        let text = announced.and_then(|announced| Notation::of(announcement.mode).print(&announced));
        let Written { line, span } = written;
        let text = text.map_or_else(|| line.text[span.clone()].to_vec(), String::into_bytes);
        let edit = Edit { start: written.start(), length: span.len(), text, before: line.text[span.start - 1] };
        if let Some(rewriter) = self.rewriter() {
            rewriter.resume(edit);
        }
        let Some(expectation) = expectation else { return Err(Refusal::CannotRewrite) };
        let expectation = Expectation { since: decided.since, ..expectation };
        self.admit(announcement, &expectation)?;
        Ok(expectation)
    }

    /// Chooses the outside port: the announced one where it is free.
    fn choose(
        &mut self,
        announcement: &Announcement<'_>,
        decided: &Expectation,
        length: Length,
        search: &mut PortSearch,
    ) -> Result<PlannedRewrite, Refusal> {
        let named = announcement.named.ok_or(Refusal::BadSyntax)?;
        let fitting = match (length, announcement.mode, &announcement.written) {
            // The text in front of the address is shortened or padded to keep the length.
            (Length::Any, ..) | (_, Mode::Pasv | Mode::Lpsv, _) | (.., None) => None,
            (Length::Same, mode, Some(written)) => Some(fitting_length(mode, &named, decided, written)),
        };
        let (terms, is_repaired) = (self.terms, self.is_repaired(announcement));
        let mut from = decided.to.port;
        'jump: loop {
            for port in terms.data_ports.cycle_from(from) {
                if !search.may_try() {
                    return Err(Refusal::NoPort);
                }
                let has_length = fitting.is_none_or(|fitting| fitting == length_of(announcement.mode, port));
                if !has_length || self.is_service(port) {
                    continue;
                }
                if !search.may_look_up() {
                    return Err(Refusal::NoPort);
                }
                let expectation = at_port(decided, port);
                if self.expectations.is_taken(&expectation) {
                    continue;
                }
                let edit = match admission::address_to_announce(&named, &expectation, is_repaired) {
                    None => None,
                    Some(announced) => {
                        let written = announcement.written.as_ref().ok_or(Refusal::CannotRewrite)?;
                        let text = Notation::of(announcement.mode).print(&announced).ok_or(Refusal::CannotRewrite)?;
                        match length {
                            Length::Any => {
                                let edit = self.edit_for(written, text.into_bytes());
                                Some(edit.ok_or(Refusal::CannotRewrite)?)
                            }
                            Length::Same => match same_length(announcement.mode, written, text.into_bytes()) {
                                Some(edit) => Some(edit),
                                None => continue,
                            },
                        }
                    }
                };
                if self.expectations.owner_of(&expectation).is_some() {
                    return Ok(PlannedRewrite { expectation, edit });
                }
                // Only the kernel knows the ports of an earlier run or of another program.
                if !search.may_ask_kernel() {
                    return Err(Refusal::NoPort);
                }
                let Expectation { from: caller, to, mapping, .. } = expectation;
                if self.env.firewall.mapping_of(caller, to).is_none_or(|installed| installed == mapping) {
                    return Ok(PlannedRewrite { expectation, edit });
                }
                from = search.random_port(terms);
                continue 'jump;
            }
            return Err(Refusal::NoPort);
        }
    }

    /// The edit for the address of a line, and for the withheld bytes around it.
    fn edit_for(&mut self, written: &Written<'_>, text: Vec<u8>) -> Option<Edit> {
        let Written { line, span } = written;
        let segment = self.segment;
        let address = written.start();
        let behind = line.start + span.end;
        let withheld = self.rewriter()?.withheld().map(|(start, bytes)| (start, bytes.to_vec()));
        let Some((start, withheld)) = withheld else {
            let before = *line.text.get(span.start.checked_sub(1)?)?;
            return Some(Edit { start: address, length: span.len(), text, before });
        };
        // The replaced bytes end in this segment, because a segment can only carry a replacement that ends in it.
        let first_here = start + withheld.len() + 1;
        let end = if behind.is_before(first_here) { first_here } else { behind };
        let length = usize::try_from(end - start).ok()?;
        let mut bytes = withheld;
        let known = usize::try_from(start + bytes.len() - segment.seq).ok()?;
        bytes.extend_from_slice(segment.payload.get(known..)?);
        let bytes = bytes.get(..length)?;
        let before_address = usize::try_from(address - start).ok()?;
        let text = [bytes.get(..before_address)?, &text, bytes.get(before_address + span.len()..)?].concat();
        let before = usize::try_from(start - line.start).ok()?.checked_sub(1)?;
        Some(Edit { start, length, text, before: *line.text.get(before)? })
    }

    fn replace(&mut self, edit: Edit) -> Result<(), RewriteError> {
        let Self { rewriters, env, connection, direction, segment, .. } = self;
        let Some(rewriters) = rewriters else { return Err(RewriteError::NotAdjusted) };
        let Environment { firewall, .. } = &mut **env;
        let rewriter = rewriters.get_mut(*direction);
        let held = rewriter.repeated_from(segment);
        let mut adjust = |adjustment: &_| firewall.adjust(connection, *direction, adjustment, &held);
        rewriter.replace(segment, edit, &mut adjust)
    }

    fn rewriter(&mut self) -> Option<&mut DirectionRewriter> {
        let direction = self.direction;
        self.rewriters.as_mut().map(|rewriters| rewriters.get_mut(direction))
    }

    /// Rewrites a line that some server may take for a denied command, so that no server does. Returns the denied
    /// command.
    pub(super) fn hold_back_denied(&mut self, line: &Line<'_>) -> Option<String> {
        if !self.terms.holds_back() {
            return None;
        }
        let is_unfinished = line.end == line.start + line.text.len();
        let last = if is_unfinished { line.end } else { line.end.moved(-1) };
        let text = searched(line.text, line.start.is_before(self.segment.seq));
        let is_searched = line.whole && text.len() == line.text.len();
        let line = &Line { text, ..*line };
        if !line.begins && (!self.has_known_start || self.may_end_denied(line.text) || has_foreign_letters(line.text)) {
            // It may be the end of a denied command of which the beginning passed unread, or was read by an earlier
            // run.
            self.overwrite(line.start, last);
            return None;
        }
        let denied = self.overwrite_denied(line, last);
        let behind = line.start + text.len();
        if !is_searched && (is_unfinished || line.end - behind > 2) {
            // A server may find a command in the bytes that are not searched.
            let payload = self.segment.payload;
            // A CR at the end may be the first byte of the CRLF.
            let kept = usize::from(payload.ends_with(b"\r"));
            let to = if is_unfinished { self.segment.seq + (payload.len() - kept) } else { last };
            self.overwrite(behind, to);
        }
        denied
    }

    /// The client began with a TLS handshake, or with what may become one. Denied commands cannot be found in TLS, so where the policy denies anything,
    /// the server does not get the handshake.
    pub(super) fn tls_offered(&mut self, at: Seq) {
        if self.terms.holds_back() {
            self.overwrite(at, at + 1);
            self.report(&super::SessionEvent::Denied { command: "implicit TLS" });
        }
    }

    /// Whether this text may be the rest of a line that began with a denied command.
    fn may_end_denied(&self, text: &[u8]) -> bool {
        let terms = self.terms;
        let secures = (terms.tls == Tls::Deny).then_some("AUTH");
        possible_verbs(text).any(|word| {
            terms.denied_verbs().chain(secures).any(|denied| {
                let rest = denied.len().checked_sub(word.len()).and_then(|from| denied.as_bytes().get(from..));
                rest.is_some_and(|rest| rest.eq_ignore_ascii_case(&word))
            })
        })
    }

    /// Overwrites as much of a line, up to `last`, as is needed that no server finds a denied command at its
    /// beginning. Returns that command.
    fn overwrite_denied(&mut self, line: &Line<'_>, last: Seq) -> Option<String> {
        if begins_plainly(line.text) {
            let verb = line.text.iter().position(|byte| !byte.is_ascii_alphanumeric()).unwrap_or(line.text.len());
            let word = std::str::from_utf8(&line.text[..verb]).ok().filter(|word| self.is_denied(word))?;
            let last = verb.checked_sub(1)?;
            let place = line.start + last;
            // It passed before a reload to a policy that denies. The server must not get the line's end.
            self.must_drop |=
                place.is_before(self.segment.seq) && !self.rewriter().is_some_and(|it| it.has_replaced(place));
            match self.harmless_letter(&word[..last], line.text[last]) {
                Some(letter) => self.overwrite_with(letter, place, place + 1),
                None => self.must_drop = true,
            }
            return Some(word.to_ascii_uppercase());
        }
        let words = possible_verbs(line.text).filter_map(|word| String::from_utf8(word).ok());
        let denied = words.into_iter().find(|word| self.is_denied(word)).map(|word| word.to_ascii_uppercase());
        // The word itself is not logged: it may be a password that was typed in the wrong place.
        let foreign = || has_foreign_letters(line.text).then(|| "a word with letters beyond ASCII".to_owned());
        let denied = denied.or_else(foreign)?;
        self.overwrite(line.start, if line.whole { last } else { line.start + line.text.len() });
        Some(denied)
    }

    /// Whether a denied command begins with this.
    fn begins_denied(&self, beginning: &str) -> bool {
        let secures = (self.terms.tls == Tls::Deny).then_some("AUTH");
        let begins = |denied: &str| denied.get(..beginning.len()).is_some_and(|it| it.eq_ignore_ascii_case(beginning));
        self.terms.denied_verbs().chain(secures).any(begins)
    }

    /// A replacement for the last letter of a denied command that leaves no denied command.
    fn harmless_letter(&self, beginning: &str, last: u8) -> Option<u8> {
        [OVERWRITTEN, b'Z', b'Q', b'J'].into_iter().find(|letter| {
            let is_changed = !letter.eq_ignore_ascii_case(&last);
            // The rest of the word may come later.
            is_changed && !self.begins_denied(&format!("{beginning}{}", char::from(*letter)))
        })
    }

    /// Overwrites these bytes as far as they are in the segment. Earlier ones have been overwritten already.
    fn overwrite(&mut self, from: Seq, to: Seq) {
        self.overwrite_with(OVERWRITTEN, from, to);
    }

    fn overwrite_with(&mut self, byte: u8, from: Seq, to: Seq) {
        let end = self.segment.seq + self.segment.payload.len();
        // Bytes behind the segment passed before a reload to a policy that denies. The server has them, and would read
        // them with this segment.
        self.must_drop |= to.is_after(end);
        let from = from.later(self.segment.seq);
        let passed_to = self.rewriter().and_then(|rewriter| rewriter.passed_to());
        let from = passed_to.map_or(from, |passed_to| from.later(passed_to));
        let from = self.rewriter().map_or(from, |rewriter| rewriter.behind_replaced(from));
        let to = if to.is_after(end) { end } else { to };
        let Some(length) = usize::try_from(to - from).ok().filter(|length| *length > 0) else { return };
        let edit = Edit { start: from, length, text: vec![byte; length], before: b' ' };
        self.must_drop |= self.replace(edit).is_err();
    }

    /// The verdict on the segment, after all its lines were handled.
    pub(super) fn verdict(&mut self, session: &Session) -> Verdict {
        if self.rewriters.is_none() {
            return Verdict::Accept;
        }
        if self.direction == Direction::FromClient
            && let Some(line) = session.unfinished(Direction::FromClient)
        {
            // The verb may be complete: its argument may come in another segment.
            self.hold_back_denied(&line);
        }
        let (must_drop, segment) = (self.must_drop, self.segment);
        if let Some(rewriter) = self.rewriter() {
            if must_drop {
                // It counts as read, and will be retransmitted.
                rewriter.block(segment);
            }
            if rewriter.is_blocked(segment) {
                return Verdict::Drop;
            }
        }
        let is_translated = self.connection.is_translated();
        let unfinished = if is_translated { session.unfinished_address(self.direction) } else { None };
        let Self { rewriters: Some(rewriters), env, connection, direction, segment, .. } = self else {
            return Verdict::Accept;
        };
        let Environment { firewall, .. } = &mut **env;
        let rewriter = rewriters.get_mut(*direction);
        let held = rewriter.repeated_from(segment);
        let mut adjust = |adjustment: &_| firewall.adjust(connection, *direction, adjustment, &held);
        if rewriter.withheld().is_some_and(|(start, _)| unfinished.is_none_or(|(address, _)| address != start)) {
            // The line does not have to change.
            let _ = rewriter.release(segment, &mut adjust);
        }
        if let Some((start, before)) = unfinished
            && rewriter.withhold(segment, start, before, &mut adjust).is_err()
        {
            let _ = rewriter.release(segment, &mut adjust);
        }
        rewriter.verdict(segment)
    }

    /// Whether the policy denies this command.
    pub(super) fn is_denied(&self, command: &str) -> bool {
        let secures = command.eq_ignore_ascii_case("AUTH") && self.terms.tls == Tls::Deny;
        secures || self.terms.denies(command)
    }

    /// Opens a pinhole, unless a limit is reached.
    pub(super) fn admit(&mut self, announcement: &Announcement<'_>, expectation: &Expectation) -> Result<(), Refusal> {
        let client = ClientKey::of(self.connection.client().address);
        let quota = PinholeQuota { terms: self.terms, limits: &self.env.policy.limits };
        let is_free = quota.has_room(expectation, self.slot, client, (&*self.expectations, &*self.ranges));
        // With so many unanswered commands, a refusal of this one would not be recognised.
        let is_beyond = announcement.mode.is_active() && announcement.number.is_none();
        if !is_free || is_beyond {
            return Err(Refusal::TooMany);
        }
        self.env.firewall.open(expectation, self.connection).map_err(|_| Refusal::NotOpened)?;
        self.expectations.insert(PinholeEntry {
            expectation: *expectation,
            mode: Some(announcement.mode),
            owner: self.slot,
            session: self.number,
            client: Some(client),
            command: announcement.number,
        });
        Ok(())
    }
}

/// The same, announced under another port.
fn at_port(decided: &Expectation, port: Port) -> Expectation {
    let mut expectation = *decided;
    if port != decided.to.port {
        expectation.mapping.to = Some(decided.target());
        expectation.to = Endpoint::new(decided.to.address, port);
    }
    expectation
}

/// The number of characters of a port in an announcement of this mode, without the text around it.
fn length_of(mode: Mode, port: Port) -> usize {
    let digits = |number: u16| number.checked_ilog10().map_or(1, |log| log as usize + 1);
    match mode {
        Mode::Eprt | Mode::Epsv => digits(port.number()),
        Mode::Port | Mode::Pasv | Mode::Lprt | Mode::Lpsv => {
            let [high, low] = port.number().to_be_bytes();
            digits(high.into()) + digits(low.into())
        }
    }
}

/// How many characters the port must have so that the line keeps its length.
fn fitting_length(mode: Mode, named: &Announced, decided: &Expectation, written: &Written<'_>) -> usize {
    let Endpoint { address, port } = decided.to;
    let announced = Announced { address: named.address.map(|_| address), port: port.number() };
    let Some(text) = Notation::of(mode).print(&announced) else { return 0 };
    (written.span.len() + length_of(mode, port)).saturating_sub(text.len())
}

/// The edit of the address of a line that keeps its length.
fn same_length(mode: Mode, written: &Written<'_>, text: Vec<u8>) -> Option<Edit> {
    let Written { line, span } = written;
    if text.len() == span.len() {
        let before = *line.text.get(span.start.checked_sub(1)?)?;
        return Some(Edit { start: written.start(), length: span.len(), text, before });
    }
    if !matches!(mode, Mode::Pasv | Mode::Lpsv) {
        return None;
    }
    // A 227 or 228 has words in front of the address that mean nothing. The character directly before it is kept: clients
    // look for a parenthesis there.
    let words = 4;
    let (&last, rest) = line.text.get(words..span.start)?.split_last()?;
    let room = (span.end - words).checked_sub(text.len() + 1)?;
    let mut padded = rest[..rest.len().min(room)].to_vec();
    padded.resize(room, b' ');
    padded.push(last);
    padded.extend(text);
    let before = *line.text.get(words - 1)?;
    Some(Edit { start: line.start + words, length: span.end - words, text: padded, before })
}

#[cfg(test)]
#[path = "line_rewrite_tests.rs"]
mod tests;
