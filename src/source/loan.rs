//! Lending what is held of a database to a worker, and what is heard meanwhile.

use super::attach::Attached;
use super::{Source, State};
use crate::database_file::{DatabaseFile, FileIdentity};
use crate::page_table::Interruption;

/// What is lent, and what has happened since.
#[derive(Default)]
pub(super) struct Loan {
    /// The file that a worker has, unless it leaves that.
    pub(super) file: Option<FileIdentity>,
    /// Ends a comparison of its pages.
    pub(super) interruption: Interruption,
    /// It is lent for a round, beside which nobody listens.
    pub(super) is_for_round: bool,
    /// What has come to the path; locked. It is let in once nothing is lent any more.
    pub(super) newcomer: Option<DatabaseFile>,
    /// The folder has changed, and what is held has not been compared with it since.
    pub(super) is_folder_unheeded: bool,
}

impl Source {
    /// Everything that is held, for a worker.
    pub(super) fn lend(&mut self) -> Option<Box<Attached>> {
        match std::mem::replace(&mut self.state, State::Lent) {
            State::Attached(mut attached) => {
                // What is asked of the pages from here on, nobody has ended.
                attached.capture.table.renew_interruption();
                self.loan.interruption = Interruption::default();
                (self.loan.file, self.loan.is_for_round) = (Some(attached.descriptor.identity()), false);
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
}
