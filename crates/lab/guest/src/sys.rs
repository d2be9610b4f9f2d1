//! The system calls that the standard library does not have, each behind a safe function.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use crate::stamp::{PAGE_BYTES, Page};

/// Anonymous memory, page aligned, for as long as the guest runs.
pub(crate) fn map_pages(count: usize) -> io::Result<&'static mut [Page]> {
    let bytes = count.checked_mul(PAGE_BYTES).ok_or(io::ErrorKind::InvalidInput)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is `bytes` long, page aligned, zeroed, never unmapped, and nobody else knows it.
    Ok(unsafe { std::slice::from_raw_parts_mut(address.cast::<Page>(), count) })
}

/// The pages' bytes.
pub(crate) fn as_bytes(pages: &[Page]) -> &[u8] {
    // SAFETY: the same memory, live as long, and integers have neither padding nor forbidden bytes.
    unsafe { std::slice::from_raw_parts(pages.as_ptr().cast(), size_of_val(pages)) }
}

/// The pages' bytes, to be read into.
pub(crate) fn as_bytes_mut(pages: &mut [Page]) -> &mut [u8] {
    // SAFETY: the same memory, borrowed alone as long, and every byte pattern is a valid integer.
    unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), size_of_val(pages)) }
}

/// Nanoseconds on the clock that stands still while the machine does.
pub(crate) fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds since 1970.
pub(crate) fn realtime_ns() -> u64 {
    clock_ns(libc::CLOCK_REALTIME)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours and of the type that the call fills; both clocks always exist.
    unsafe { libc::clock_gettime(clock, &mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

pub(crate) fn mount(kind: &str, place: &str) -> io::Result<()> {
    let kind = CString::new(kind)?;
    let place = CString::new(place)?;
    // SAFETY: three C strings that outlive the call; no data argument.
    let result = unsafe { libc::mount(kind.as_ptr(), place.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    // The kernel may have mounted /dev by itself.
    checked(result)
        .or_else(|error| if error.raw_os_error() == Some(libc::EBUSY) { Ok(()) } else { Err(error) })
}

pub(crate) fn load_module(module: &File) -> io::Result<()> {
    // SAFETY: an open file, an empty C string as parameters, no flags.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `reboot(2)` with one of its commands, after a sync.
pub(crate) fn reboot(command: libc::c_int) {
    // SAFETY: takes nothing, always succeeds.
    unsafe { libc::sync() };
    // SAFETY: takes a number; as PID 1 of the guest this is ours to do.
    unsafe { libc::reboot(command) };
}

/// Waits until one of the files can be read; gives which.
pub(crate) fn poll_readable(files: &[File]) -> io::Result<Vec<bool>> {
    let mut polled: Vec<libc::pollfd> = files
        .iter()
        .map(|file| libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    // SAFETY: the pointer and the length are those of the vector, whose descriptors are open.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(polled.iter().map(|entry| entry.revents & libc::POLLIN != 0).collect())
}

/// Gives the interface its MAC address (if one is asked for) and IPv4 address, and sets it up.
pub(crate) fn set_interface(name: &str, mac: Option<[u8; 6]>, ip: Option<(Ipv4Addr, u8)>) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    if let Some(mac) = mac {
        let mut hardware = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
        for (to, from) in hardware.sa_data.iter_mut().zip(mac) {
            *to = from as libc::c_char;
        }
        request(&socket, libc::SIOCSIFHWADDR, name, libc::__c_anonymous_ifr_ifru { ifru_hwaddr: hardware })?;
    }
    if let Some((address, prefix)) = ip {
        let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0));
        let value = libc::__c_anonymous_ifr_ifru { ifru_addr: socket_address(address) };
        request(&socket, libc::SIOCSIFADDR, name, value)?;
        let value = libc::__c_anonymous_ifr_ifru { ifru_netmask: socket_address(mask) };
        request(&socket, libc::SIOCSIFNETMASK, name, value)?;
    }
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    request(&socket, libc::SIOCSIFFLAGS, name, libc::__c_anonymous_ifr_ifru { ifru_flags: flags })
}

/// Sets the interface down.
pub(crate) fn set_interface_down(name: &str) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    request(&socket, libc::SIOCSIFFLAGS, name, libc::__c_anonymous_ifr_ifru { ifru_flags: 0 })
}

/// An IPv4 address as the `sockaddr` of an interface request: family, port 0, address.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut socket_address =
        libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: [0; 14] };
    for (to, from) in socket_address.sa_data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    socket_address
}

fn request(
    socket: &UdpSocket,
    code: libc::c_ulong,
    name: &str,
    value: libc::__c_anonymous_ifr_ifru,
) -> io::Result<()> {
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: value };
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: an open socket and a request of the type that all SIOCSIF* codes take, which outlives the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), code as libc::Ioctl, &request) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
