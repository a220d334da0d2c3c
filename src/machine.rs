//! Which machine this is: a clone is another one, and after a restart it is the same.

use rustix::system::uname;
use std::fs;

/// Given by whoever made the image; the same in a clone.
const MACHINE_ID: &str = "/etc/machine-id";
/// Given by the firmware, or by whoever runs the virtual machine; for root only.
const PRODUCT_ID: &str = "/sys/class/dmi/id/product_uuid";
/// Another one after each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its name, for people.
    pub name: String,
    /// What no other machine has.
    pub id: String,
}

impl Machine {
    /// The one that this program runs on. Where nothing tells it from its clone, it is another one after each boot.
    pub fn this() -> Machine {
        let read = |path| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let hardware = read(PRODUCT_ID).filter(|id| !id.is_empty()).or_else(|| read(BOOT_ID));
        let id = [read(MACHINE_ID), hardware].map(Option::unwrap_or_default).join(" ");
        Machine { name: uname().nodename().to_string_lossy().into_owned(), id }
    }
}
