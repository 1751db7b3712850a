//! The commands that the server has not answered yet, in order.
//!
//! Bounded: when a client pipelines too many commands, the further ones are counted and not interpreted.

use crate::core::ftp::Mode;

/// How many unanswered commands are kept with their kind. Clients that pipeline send a few.
const MAX_COMMANDS: usize = 16;

/// The kind of an unanswered command, as far as its reply matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PendingCommand {
    /// PORT, EPRT or LPRT.
    Active(Mode),
    /// PASV, EPSV or LPSV.
    Passive(Mode),
    EpsvAll,
    User,
    /// PASS or ACCT.
    Pass,
    Rein,
    Auth,
    Abor,
    Other,
    /// An empty line. Some servers answer it with an error, others do not.
    EmptyLine,
}

/// The number of a command within its session, to find its effects when the reply comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandNumber(u32);

/// A queue of [`PendingCommand`].
#[derive(Debug)]
pub(super) struct PendingCommands {
    kinds: [PendingCommand; MAX_COMMANDS],
    first: u8,
    count: u8,
    /// Further commands after those in `kinds`, of unknown kind.
    beyond: u16,
    /// The number of the first one in the queue.
    number: CommandNumber,
    /// The latest command that the server may have read as the rest of the line before it.
    continuation: Option<CommandNumber>,
}

impl Default for PendingCommands {
    fn default() -> Self {
        Self {
            kinds: [PendingCommand::Other; MAX_COMMANDS],
            first: 0,
            count: 0,
            beyond: 0,
            number: CommandNumber(0),
            continuation: None,
        }
    }
}

impl PendingCommands {
    /// Adds a command. Returns its number, unless too many commands are unanswered to recognise its reply.
    pub(super) fn push(&mut self, kind: PendingCommand) -> Option<CommandNumber> {
        if usize::from(self.count) == MAX_COMMANDS || self.beyond > 0 {
            self.beyond = self.beyond.saturating_add(1);
            return None;
        }
        let number = self.next_number();
        self.kinds[(usize::from(self.first) + usize::from(self.count)) % MAX_COMMANDS] = kind;
        self.count += 1;
        Some(number)
    }

    /// The server may read the next command as the rest of the last one, and then answers both with one error.
    pub(super) fn next_may_be_continuation(&mut self) {
        if self.count > 0 && self.beyond == 0 {
            self.continuation = Some(self.next_number());
        }
    }

    fn next_number(&self) -> CommandNumber {
        CommandNumber(self.number.0.wrapping_add(u32::from(self.count)))
    }

    /// Whether every command is answered.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0 && self.beyond == 0
    }

    /// Removes the command that a final reply answers: the first one, except that an empty line may be skipped.
    ///
    /// After a loss, a success may answer an earlier command. So only its own reply, or an error, answers a PASV,
    /// EPSV or LPSV; otherwise that command stays unanswered.
    pub(super) fn pop(&mut self, code: u16, synced: bool) -> Option<(PendingCommand, CommandNumber)> {
        while let Some(front) = self.front() {
            if !synced && matches!(front, PendingCommand::Passive(_)) && code < 400 {
                return None;
            }
            let number = self.advance();
            let is_syntax_error = (500..=504).contains(&code);
            if front != PendingCommand::EmptyLine || is_syntax_error {
                if is_syntax_error && self.count > 0 && self.continuation == Some(self.number) {
                    self.advance();
                }
                return Some((front, number));
            }
        }
        self.beyond = self.beyond.saturating_sub(1);
        None
    }

    /// Whether a command that logs a user in may be unanswered.
    pub(super) fn may_have_login(&self) -> bool {
        let mut kinds = (0..usize::from(self.count)).map(|index| self.kind_at(index));
        self.is_beyond() || kinds.any(|kind| matches!(kind, PendingCommand::User | PendingCommand::Pass))
    }

    /// Whether commands of unknown kind are unanswered.
    pub(super) fn is_beyond(&self) -> bool {
        self.beyond > 0
    }

    /// Removes all commands up to and including the first one that `is_meant` accepts, if there is one, and returns
    /// that.
    ///
    /// A reply that can answer only one kind of command restores the order with a server that answered another
    /// command twice or never.
    pub(super) fn pop_through(&mut self, is_meant: impl Fn(PendingCommand) -> bool) -> Option<PendingCommand> {
        let found = (0..usize::from(self.count)).find(|index| is_meant(self.kind_at(*index)))?;
        let kind = self.kind_at(found);
        for _ in 0..=found {
            self.advance();
        }
        Some(kind)
    }

    /// Forgets all commands: it is unknown which of them are answered.
    pub(super) fn clear(&mut self) {
        while self.count > 0 {
            self.advance();
        }
        self.beyond = 0;
    }

    fn front(&self) -> Option<PendingCommand> {
        (self.count > 0).then(|| self.kind_at(0))
    }

    fn kind_at(&self, index: usize) -> PendingCommand {
        self.kinds[(usize::from(self.first) + index) % MAX_COMMANDS]
    }

    fn advance(&mut self) -> CommandNumber {
        let number = self.number;
        self.first = (self.first + 1) % MAX_COMMANDS as u8;
        self.count -= 1;
        self.number = CommandNumber(number.0.wrapping_add(1));
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_come_in_the_order_of_the_commands() {
        let mut queue = PendingCommands::default();
        let numbers: Vec<_> = [PendingCommand::User, PendingCommand::Pass, PendingCommand::Other]
            .into_iter()
            .filter_map(|kind| queue.push(kind))
            .collect();
        assert_eq!(queue.pop(331, true), Some((PendingCommand::User, numbers[0])));
        assert_eq!(queue.pop(230, true), Some((PendingCommand::Pass, numbers[1])));
        assert_eq!(queue.pop(200, true), Some((PendingCommand::Other, numbers[2])));
        assert_eq!(queue.pop(200, true), None);
    }

    #[test]
    fn empty_line_gets_an_error_or_no_reply() {
        let mut queue = PendingCommands::default();
        queue.push(PendingCommand::EmptyLine);
        queue.push(PendingCommand::User);
        assert_eq!(queue.pop(500, true).map(|(kind, _)| kind), Some(PendingCommand::EmptyLine));
        assert_eq!(queue.pop(331, true).map(|(kind, _)| kind), Some(PendingCommand::User));
        queue.push(PendingCommand::EmptyLine);
        queue.push(PendingCommand::User);
        assert_eq!(queue.pop(331, true).map(|(kind, _)| kind), Some(PendingCommand::User));
    }

    #[test]
    fn unambiguous_reply_restores_the_order() {
        let mut queue = PendingCommands::default();
        queue.push(PendingCommand::Other);
        queue.push(PendingCommand::Passive(Mode::Pasv));
        queue.push(PendingCommand::Other);
        assert_eq!(queue.pop_through(|kind| kind == PendingCommand::Passive(Mode::Epsv)), None);
        assert!(queue.pop_through(|kind| kind == PendingCommand::Passive(Mode::Pasv)).is_some());
        assert_eq!(queue.pop(200, true).map(|(kind, _)| kind), Some(PendingCommand::Other));
        assert_eq!(queue.pop(200, true), None);
    }

    #[test]
    fn without_sync_pasv_is_answered_by_its_reply_or_an_error() {
        let mut queue = PendingCommands::default();
        queue.push(PendingCommand::Passive(Mode::Pasv));
        assert_eq!(queue.pop(226, false), None);
        assert_eq!(queue.pop(502, false).map(|(kind, _)| kind), Some(PendingCommand::Passive(Mode::Pasv)));
        assert_eq!(queue.pop(502, true), None);
    }

    #[test]
    fn commands_beyond_the_bound_are_counted_and_have_no_number() {
        let mut queue = PendingCommands::default();
        for _ in 0..MAX_COMMANDS {
            assert!(queue.push(PendingCommand::Other).is_some());
        }
        assert_eq!(queue.push(PendingCommand::Active(Mode::Port)), None);
        for _ in 0..MAX_COMMANDS {
            assert!(queue.pop(200, true).is_some());
        }
        assert_eq!(queue.push(PendingCommand::Active(Mode::Port)), None, "it comes behind one that is unknown");
        assert_eq!((queue.pop(200, true), queue.pop(200, true)), (None, None));
        assert!(queue.push(PendingCommand::Active(Mode::Port)).is_some());
    }
}
