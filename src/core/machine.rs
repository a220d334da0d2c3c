//! Which machine it is: a clone of its disk in another one is another machine, and after a restart it is the same.

use super::checksum::Crc64;
use std::fmt;
use std::str::FromStr;

/// What tells a machine from others, as far as it is known, and only to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Machine {
    /// Given to its installation; the same in a clone that nobody gave another one.
    installation: Option<u64>,
    /// Given by its firmware, or by whoever runs the virtual machine.
    hardware: Option<u64>,
}

impl Machine {
    /// One with these names; an empty one says nothing.
    pub fn new(installation: Option<&str>, hardware: Option<&str>) -> Machine {
        let known = |name: Option<&str>| {
            let name = name.map(str::trim).filter(|name| !name.is_empty() && *name != UNINITIALIZED);
            name.map(|name| Crc64::of(name.as_bytes()))
        };
        Machine { installation: known(installation), hardware: known(hardware) }
    }

    /// The same with what is known of it only from `other`.
    pub fn or(self, other: Machine) -> Machine {
        Machine {
            installation: self.installation.or(other.installation),
            hardware: self.hardware.or(other.hardware),
        }
    }

    /// Whether it is certainly not `other`.
    pub fn is_not(self, other: Machine) -> bool {
        let differ = |one: Option<u64>, other: Option<u64>| one.zip(other).is_some_and(|(a, b)| a != b);
        differ(self.installation, other.installation) || differ(self.hardware, other.hardware)
    }
}

/// What /etc/machine-id holds until an installation has got its name: machine-id(5).
const UNINITIALIZED: &str = "uninitialized";
/// What stands for a name that is not known.
const UNKNOWN: &str = "-";

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |name: Option<u64>| name.map_or(UNKNOWN.to_owned(), |name| format!("{name:016x}"));
        write!(f, "{}/{}", word(self.installation), word(self.hardware))
    }
}

impl FromStr for Machine {
    type Err = ();

    fn from_str(text: &str) -> Result<Machine, ()> {
        let name = |word| match word {
            UNKNOWN => Ok(None),
            word => u64::from_str_radix(word, 16).map(Some).map_err(|_| ()),
        };
        let (installation, hardware) = text.split_once('/').ok_or(())?;
        Ok(Machine { installation: name(installation)?, hardware: name(hardware)? })
    }
}

#[cfg(test)]
mod tests {
    use super::Machine;

    #[test]
    fn a_machine_is_another_one_if_anything_that_is_known_of_both_differs() {
        let whole = Machine::new(Some("1"), Some("a\n"));
        assert!(!whole.is_not(Machine::new(Some("1\n"), Some("a"))));
        assert!(whole.is_not(Machine::new(Some("1"), Some("b"))));
        assert!(whole.is_not(Machine::new(Some("2"), Some("a"))));
        for unknown in
            [Machine::new(Some("1"), None), Machine::new(None, Some("a")), Machine::new(None, Some(" "))]
        {
            assert!(!whole.is_not(unknown) && !unknown.is_not(whole), "{unknown}");
        }
        assert!(Machine::new(None, Some("b")).is_not(whole));
        assert_eq!(Machine::new(Some("uninitialized\n"), None), Machine::default());
        assert_eq!(Machine::new(Some("1"), None).or(Machine::new(Some("2"), Some("a"))), whole);
    }

    #[test]
    fn a_machine_is_read_as_it_was_written() {
        for machine in [Machine::new(Some("1"), Some("a")), Machine::new(None, Some("a")), Machine::default()]
        {
            assert_eq!(machine.to_string().parse(), Ok(machine));
        }
        for wrong in ["", "1", "x/y", "1/2/3"] {
            assert_eq!(wrong.parse::<Machine>(), Err(()), "{wrong}");
        }
    }
}
