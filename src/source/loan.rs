//! Lending what is held of a database to a worker, and what is heard meanwhile.

use super::attach::Attached;
use super::newcomer::Door;
use super::{Source, State};
use crate::database_file::DatabaseFile;
use crate::page_table::Interruption;

/// What is lent, and what has happened since.
#[derive(Default)]
pub(super) struct Loan {
    /// The file that a worker has, unless it leaves that.
    pub(super) file: Option<DatabaseFile>,
    /// Its path, from when another file has come to that until whoever opens it may be let in.
    pub(super) door: Option<Door>,
    /// Ends a comparison of its pages.
    pub(super) interruption: Interruption,
    /// It is lent for a round, beside which nobody listens.
    pub(super) is_for_round: bool,
    /// The folder has changed, and what is held has not been compared with it since.
    pub(super) is_folder_unheeded: bool,
}

impl Source {
    /// Everything that is held, for a worker. Its file is open until [`Source::take_back`].
    pub(super) fn lend(&mut self) -> Option<Box<Attached>> {
        match std::mem::replace(&mut self.state, State::Lent) {
            State::Attached(mut attached) => {
                // What is asked of the pages from here on, nobody has ended.
                attached.capture.table.renew_interruption();
                self.loan.interruption = Interruption::default();
                (self.loan.file, self.loan.is_for_round) = (Some(attached.descriptor.clone()), false);
                self.is_caught_up = false;
                Some(attached)
            }
            other => {
                self.state = other;
                None
            }
        }
    }

    /// The same, for a worker that compares its pages.
    pub(super) fn lend_interruptibly(&mut self) -> Option<Box<Attached>> {
        let mut attached = self.lend()?;
        self.loan.interruption = attached.capture.table.renew_interruption();
        Some(attached)
    }

    /// The worker has given it back, or has closed it.
    pub(super) fn take_back(&mut self) {
        self.loan.file = None;
    }

    /// Everything that was held, for whoever leaves it: nothing is held any more.
    pub(super) fn take_held(&mut self) -> Option<Box<Attached>> {
        let attached = self.lend()?;
        self.take_back();
        self.state = State::Detached;
        self.hold_nothing();
        Some(attached)
    }
}
