//! The Debian guest with PostgreSQL: a real system with a database, whose client outside knows what it was promised.
//!
//! Made from Debian's packages when it is first needed ([`Image`]). A [`Bank`] outside moves money between its
//! accounts over one TCP connection, and in the end says whether every transfer that was acknowledged is there.

mod bank;
mod client;
mod image;

pub use bank::{Audit, Bank};
pub use client::Client;
pub use image::Image;
use limosa_model::VmSpec;

use crate::guest::GuestConfig;
use crate::names::Network;

/// The names of the guest's kernel and initial file system in a datastore's `templates`.
pub const KERNEL: &str = "postgres-vmlinuz";
/// See [`KERNEL`].
pub const INITRD: &str = "postgres-initrd";

/// The spec of the guest, for an agent to start. Of the configuration its name, memory and address count.
pub fn spec(config: &GuestConfig) -> VmSpec {
    let command_line = format!(
        "console=ttyS0 quiet net.ifnames=0 root=/dev/vda rw init=/usr/sbin/limosa-init limosa.ip={}/{}",
        config.address,
        Network::PREFIX_BITS
    );
    let text = format!(
        "name = \"{}\"\ncpus = 2\nmemory = \"{}MiB\"\n[[disks]]\nname = \"root\"\ndatastore = \"shared\"\nformat = \"raw\"\nsize = \"{}MiB\"\n[[nics]]\nnetwork = \"lan\"\nmac = \"{}\"\naddresses = [\"{}\"]\n[boot.kernel]\ndatastore = \"shared\"\nimage = \"{KERNEL}\"\ninitrd = \"{INITRD}\"\ncommand_line = \"{command_line}\"\n",
        config.name,
        config.memory_mib,
        image::SIZE_MIB,
        config.mac(),
        config.address,
    );
    limosa_model::toml_spec::from_toml(&text).expect("the text above is a spec")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Room;

    #[test]
    fn the_spec_of_the_guest_is_valid() {
        let spec = spec(&GuestConfig { memory_mib: 1024, ..GuestConfig::new("postgres", Room::Host(1)) });
        spec.validate().unwrap();
        assert_eq!(spec.disks.len(), 1);
    }
}
