//! Who may use a file, and whether `-wal` and `-shm` serve all who may use their database.
//!
//! SQLite makes both with the mode of the database, and gives them to its owner and group when it makes them. Nobody gives
//! them away later: not where the database gets another owner, nor where its rights are in an access list.

use std::fmt;

/// A file's owner, group, mode (nine bits) and access list (as the kernel keeps it), if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// Its owner.
    pub owner: u32,
    /// Its group.
    pub group: u32,
    /// Who may read and write it; with an access list, the group's bits are the most that the list can grant.
    pub mode: u32,
    /// More who may.
    pub list: Option<Vec<u8>>,
}

/// To read and to write.
const READ_AND_WRITE: u32 = 0o6;

impl Rights {
    /// What a file beside this one is to have. A list that only the other one has is from its folder, and SQLite leaves it.
    pub fn beside(&self, other: &Rights) -> Rights {
        Rights { list: self.list.clone().or_else(|| other.list.clone()), ..self.clone() }
    }

    /// Whether the same is permitted, whoever the owner is.
    pub fn permits_the_same(&self, other: &Rights) -> bool {
        (self.mode, &self.list) == (other.mode, &other.list)
    }

    /// Whether a file with these rights, made by `maker`, shuts nobody out of the `database` that it lies beside whom SQLite
    /// would not shut out: neither its owner nor its group. What the database's owner makes, and what others have made,
    /// is theirs.
    pub fn serves(&self, database: &Rights, maker: u32) -> bool {
        if maker == database.owner || self.owner != maker {
            return true;
        }
        let grants = |class: u32| (self.mode >> class) & READ_AND_WRITE;
        let needs = |class: u32| (database.mode >> class) & READ_AND_WRITE;
        // That the owner is in the group is taken for granted: why else would others of it write the database?
        let granted = if self.group == database.group { grants(3) } else { grants(0) };
        let is_root = database.owner == 0;
        (is_root || needs(6) & !granted == 0)
            && needs(3) & !granted == 0
            && needs(0) & !grants(0) == 0
            && (database.list.is_none() || database.list == self.list)
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}, group {}, mode {:o}", self.owner, self.group, self.mode)?;
        if self.list.is_some() { f.write_str(", with an access list") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APPLICATION: u32 = 2001;
    const AGENT: u32 = 2002;
    const GROUP: u32 = 2000;

    fn rights(owner: u32, group: u32, mode: u32) -> Rights {
        Rights { owner, group, mode, list: None }
    }

    #[test]
    fn a_file_of_the_agents_serves_where_owner_and_group_of_the_database_can_use_it() {
        let of_agent = |group, mode| rights(AGENT, group, mode);
        for (beside, database, serves) in [
            (of_agent(AGENT, 0o660), rights(APPLICATION, GROUP, 0o660), false),
            (of_agent(GROUP, 0o660), rights(APPLICATION, GROUP, 0o660), true),
            (of_agent(GROUP, 0o640), rights(APPLICATION, GROUP, 0o640), false),
            (of_agent(AGENT, 0o644), rights(APPLICATION, APPLICATION, 0o644), false),
            (of_agent(AGENT, 0o666), rights(APPLICATION, APPLICATION, 0o666), true),
            (of_agent(AGENT, 0o644), rights(0, 0, 0o644), true),
            (of_agent(AGENT, 0o660), rights(0, GROUP, 0o660), false),
        ] {
            assert_eq!(beside.serves(&database, AGENT), serves, "{beside} beside {database}");
        }
    }

    #[test]
    fn what_the_owner_of_the_database_or_an_application_has_made_is_theirs() {
        let database = rights(APPLICATION, GROUP, 0o660);
        assert!(rights(APPLICATION, APPLICATION, 0o600).serves(&database, APPLICATION));
        assert!(rights(3000, 3000, 0o600).serves(&database, AGENT));
    }

    #[test]
    fn an_access_list_of_the_database_is_one_of_its_neighbours_too() {
        let database = Rights { list: Some(vec![1, 2]), ..rights(0, 0, 0o660) };
        let without = rights(AGENT, 0, 0o660);
        assert!(!without.serves(&database, AGENT));
        assert!(database.beside(&without).list == database.list);
        assert!(rights(0, 0, 0o660).beside(&database).list == database.list, "it was the folder's");
    }
}
